"""The inner problem of training a network with a learned optimizer."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from meta_train.inner.horizon import LogUniform
from metaopt.core import Episode, InnerProblem, LearnedOptimizer, Task
from metaopt.errors import UserError

LOG_FLOOR = 1e-2  # relative losses below this count as equal: noise of a batch near zero
WORST = 2.0  # relative losses above this, or not finite, count as this


@dataclasses.dataclass(frozen=True)
class Config:
    horizon: LogUniform
    split: str = "valid"  # "train": the training loss before the update, at no cost;
    # another split: the loss of a fresh batch after the update, one forward pass more
    objective: str = "log"  # "log": log of the relative loss; "linear": the relative loss

    def __post_init__(self):
        if self.objective not in ("log", "linear"):
            raise UserError(f"objective must be 'log' or 'linear', got {self.objective!r}")
        if self.split not in ("train", "valid"):
            raise UserError(f"split must be 'train' or 'valid', got {self.split!r}")


def build(optimizer: LearnedOptimizer, task: Task, config: Config) -> InnerProblem:
    """Trains a freshly sampled problem of ``task`` with ``optimizer.bind(theta, horizon)``.

    The recorded loss of a step is, relative to the loss r0 of the initial parameters
    (theta does not reach it, so dividing changes no sign and makes tasks comparable),

        r = loss / r0,  at most 2;    log(r + 0.01) or r

    Returns:
      An ``InnerProblem`` whose ``problem`` is (task_params, r0) and whose ``inner``
      is (params, optimizer state).
    """

    transform = (lambda r: jnp.log(r + LOG_FLOOR)) if config.objective == "log" else (lambda r: r)

    def reset(theta, key) -> Episode:
        k_problem, k_params, k_horizon, k_first, k_steps = jax.random.split(key, 5)
        horizon = config.horizon.sample(k_horizon)
        task_params = task.sample(k_problem)
        params = task.init(task_params, k_params)
        first_loss = task.loss(task_params, params, k_first, config.split)
        state = optimizer.bind(theta, num_steps=horizon).init(params)
        return Episode(k_steps, jnp.zeros((), jnp.int32), horizon, (task_params, first_loss), (params, state))

    def step(theta, episode: Episode) -> tuple[Episode, jax.Array]:
        (task_params, first_loss), (params, state) = episode.problem, episode.inner
        k_train, k_record = jax.random.split(jax.random.fold_in(episode.key, episode.step))
        loss, grads = jax.value_and_grad(task.loss, argnums=1)(task_params, params, k_train)
        tx = optimizer.bind(theta, num_steps=episode.horizon)
        updates, state = tx.update(grads, state, params, value=loss)
        params = optax.apply_updates(params, updates)
        if config.split != "train":
            loss = task.loss(task_params, params, k_record, config.split)
        recorded = transform(jnp.maximum(loss / first_loss, 0.0))
        return episode._replace(step=episode.step + 1, inner=(params, state)), recorded

    return InnerProblem(reset, step, float(transform(WORST)))
