"""The inner problem of training a network with a learned optimizer."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from meta_train.inner import forcing
from meta_train.inner.forcing import Expert
from meta_train.inner.horizon import Horizon
from metaopt.core import Episode, InnerProblem, LearnedOptimizer, Learner, Params, PyTree, Task, scaled_updates
from metaopt.errors import UserError

LOG_FLOOR = 1e-2  # relative losses below this count as equal: noise of a batch near zero
WORST = 2.0  # relative losses above this, or not finite, count as this
FINAL_BATCHES = 10  # that measure a state as it stands

# What the random numbers of a step are for.
TRAIN, RECORD, FINAL = range(3)


@dataclasses.dataclass(frozen=True)
class Config:
    horizon: Horizon
    split: str = "valid"  # "train": the training loss before the update, at no cost;
    # another split: the loss of a fresh batch after the update, one forward pass more
    objective: str = "log"  # "log": log of the relative loss; "linear": the relative loss
    first_order: bool = False  # gradients of the inner loss are not differentiated
    expert: Expert | None = None  # leads at first, see forcing

    def __post_init__(self):
        if self.objective not in ("log", "linear"):
            raise UserError(f"objective must be 'log' or 'linear', got {self.objective!r}")
        if self.split not in ("train", "valid"):
            raise UserError(f"split must be 'train' or 'valid', got {self.split!r}")


class Training(NamedTuple):
    """``inner`` of an episode: what theta acts on."""

    params: Params
    state: PyTree  # of the learned optimizer
    expert: PyTree  # state of the expert; () without one


class Problem(NamedTuple):
    """``problem`` of an episode: what is solved."""

    task_params: PyTree
    first_loss: jax.Array  # () of the initial parameters
    expert_weight: jax.Array | tuple  # () share of the expert in every update


def build(optimizer: LearnedOptimizer, task: Task, config: Config) -> InnerProblem:
    """Trains a freshly sampled problem of ``task`` with ``optimizer.bind(theta, horizon)``.

    The recorded loss of a step is, relative to the loss r0 of the initial parameters
    (theta does not reach it, so dividing changes no sign and makes tasks comparable),

        r = loss / r0,  at most 2;    log(r + 0.01) or r

    Returns:
      An ``InnerProblem`` whose ``problem`` is a Problem and whose ``inner`` a Training.
    """

    transform = (lambda r: jnp.log(r + LOG_FLOOR)) if config.objective == "log" else (lambda r: r)
    expert = config.expert.optimizer() if config.expert else None

    def reset(theta, key, outer_step) -> Episode:
        k_problem, k_params, k_horizon, k_first, k_steps = jax.random.split(key, 5)
        horizon = config.horizon.sample(k_horizon, outer_step)
        task_params = task.sample(k_problem)
        params = task.init(task_params, k_params)
        first_loss = task.loss(task_params, params, k_first, config.split)
        weight = config.expert.weight(outer_step) if config.expert else ()
        state = optimizer.bind(theta, num_steps=horizon).init(params)
        inner = Training(params, state, expert.init(params) if expert else ())
        return Episode(k_steps, jnp.zeros((), jnp.int32), horizon, Problem(task_params, first_loss, weight), inner)

    def step(theta, episode: Episode) -> tuple[Episode, jax.Array]:
        task_params, (params, state, expert_state) = episode.problem.task_params, episode.inner
        value_fn = lambda params: task.loss(task_params, params, _key(episode, TRAIN))
        loss, grads = jax.value_and_grad(value_fn)(params)
        if config.first_order:
            grads = jax.lax.stop_gradient(grads)
        tx = optimizer.bind(theta, num_steps=episode.horizon)
        updates, state = tx.update(grads, state, params, value=loss, value_fn=value_fn)
        updates = scaled_updates(task, task_params, updates)
        apart: Any = 0.0
        if expert:
            shown, expert_state = expert.update(grads, expert_state, params)
            apart = forcing.disagreement(shown, updates)
            updates = forcing.blend(episode.problem.expert_weight, shown, updates)
        params = optax.apply_updates(params, updates)
        if config.split != "train":
            loss = task.loss(task_params, params, _key(episode, RECORD), config.split)
        recorded = relative(episode, loss)
        if config.expert:
            # What is not finite or too large must not hide how far apart the updates are.
            recorded = jnp.where(recorded <= transform(WORST), recorded, transform(WORST))
            share = config.expert.imitation * episode.problem.expert_weight
            recorded = (1 - share) * recorded + share * apart
        return episode._replace(step=episode.step + 1, inner=Training(params, state, expert_state)), recorded

    def relative(episode: Episode, loss) -> jax.Array:
        return transform(jnp.maximum(loss / episode.problem.first_loss, 0.0))

    def final(episode: Episode) -> jax.Array:
        keys = jax.random.split(_key(episode, FINAL), FINAL_BATCHES)
        loss = lambda key: task.loss(episode.problem.task_params, episode.inner.params, key, config.split)
        return relative(episode, jnp.mean(jax.vmap(loss)(keys)))

    outputs = getattr(task, "outputs", None)
    learner = Learner(
        params=lambda episode: episode.inner.params,
        loss=lambda episode, params: task.loss(episode.problem.task_params, params, _key(episode, TRAIN)),
        outputs=outputs and (lambda e, params: outputs(e.problem.task_params, params, _key(e, TRAIN))),
    )
    worst = float(transform(WORST))
    if config.expert:
        worst = max(worst, forcing.LARGEST)
    return InnerProblem(reset, step, worst, config.horizon.bound, final, learner)


def _key(episode: Episode, purpose: int) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(episode.key, episode.step), purpose)
