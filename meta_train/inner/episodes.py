"""The inner problem of a learned algorithm on a task: reset, step and recorded loss of its episodes."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from meta_train.inner.horizon import Horizon
from meta_train.inner.recorded import FORMS
from metaopt.core import (
    Algorithm,
    Episode,
    InnerProblem,
    Key,
    Learned,
    Learner,
    Params,
    PyTree,
    Task,
    TaskParams,
    Theta,
    num_calls,
)
from metaopt.errors import UserError, unknown
from tasks.supervised import Supervised

FINAL_BATCHES = 10  # number of batches that InnerProblem.final averages over
SPLITS = ("train", "valid")

# Purposes of the random numbers of a step.
STEP, RECORD, FINAL = range(3)


@dataclasses.dataclass(frozen=True)
class Episodes(Horizon):
    """Settings of the length of episodes and of their recorded losses."""

    split: str = "valid"  # "train": the loss that a step returns, at no cost; "valid": an additional
    # measurement of the solution after the step, on a fresh batch of that split
    objective: str = "log"  # form of the recorded loss: log or linear (relative to the first loss), or raw
    first_order: bool = False  # treat gradients of the inner loss as constants; for optimizers

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective not in FORMS:
            raise unknown("objective", self.objective, FORMS)
        if self.split not in SPLITS:
            raise unknown("split", self.split, SPLITS)


class Problem(NamedTuple):
    """``problem`` of an episode."""

    task_params: TaskParams  # problem drawn from the task
    first_loss: jax.Array | tuple  # () loss before the first step; an empty tuple if the recorded loss is raw


def build(learned: Learned, task: Task, config: Episodes, window: int = 1) -> InnerProblem:
    """Solves freshly sampled problems of ``task`` with ``learned.bind(theta, horizon)``.

    Args:
      learned: learned algorithm, of a kind in ``task.solved_by``.
      task: task whose ``step`` is one inner step.
      config: lengths of episodes, and form of the recorded loss, see ``meta_train.inner.recorded``.
      window: truncation length in inner steps; lengths of episodes are rounded to a multiple of it.

    Returns:
      An ``InnerProblem`` whose episodes have a Problem as ``problem`` and the state of the task as ``inner``.

    Raises:
      UserError: for a kind that does not solve the task, ``first_order`` where there are no gradients,
        or a window longer than the shortest episode.
    """
    check_solved(learned, task)
    if config.first_order and learned.kind != "optimizer":
        raise UserError(f"first_order=True is for optimizers: set it to False for a {learned.kind}")
    config.check_window(window)
    form = FORMS[config.objective]

    def bind(theta: Theta, num_steps: jax.Array) -> Algorithm:
        algorithm = learned.bind(theta, num_steps=num_calls(task, learned.kind, num_steps))
        return without_second_derivatives(algorithm) if config.first_order else algorithm

    def measure(task_params: TaskParams, solution: PyTree, key: Key) -> jax.Array:
        return task.evaluate(task_params, solution, config.split, key)["loss"]

    def reset(theta: Theta, key: Key, outer_step: jax.Array | int) -> Episode:
        k_problem, k_init, k_horizon, k_first, k_steps = jax.random.split(key, 5)
        horizon = config.sample(k_horizon, window, outer_step)
        task_params = task.sample(k_problem)
        x = task.init(task_params, k_init)
        first_loss = measure(task_params, x, k_first) if form.relative else ()
        state = task.start(bind(theta, horizon), task_params, x)
        return Episode(k_steps, jnp.zeros((), jnp.int32), horizon, Problem(task_params, first_loss), state)

    def step(theta: Theta, episode: Episode) -> tuple[Episode, jax.Array]:
        task_params, first_loss = episode.problem
        algorithm = bind(theta, episode.horizon)
        state, loss = task.step(algorithm, task_params, episode.inner, _key(episode, STEP))
        if config.split != "train":
            loss = measure(task_params, task.solution(state), _key(episode, RECORD))
        return episode._replace(step=episode.step + 1, inner=state), form.record(loss, first_loss)

    def final(episode: Episode) -> jax.Array:
        task_params, first_loss = episode.problem
        solution, keys = task.solution(episode.inner), jax.random.split(_key(episode, FINAL), FINAL_BATCHES)
        losses = jax.vmap(lambda key: measure(task_params, solution, key))(keys)
        return form.record(jnp.mean(losses), first_loss)

    return InnerProblem(reset, step, form.worst(), config.bound(window), final, _learner(task))


def check_solved(learned: Learned, task: Task) -> None:
    """Raises UserError unless the task is solved by algorithms of this kind."""
    if learned.kind not in task.solved_by:
        raise UserError(
            f"task {task.name} is solved by {' or '.join(task.solved_by)}, the family is of kind {learned.kind}: "
            "choose another family or other tasks"
        )


def without_second_derivatives(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The same optimizer with ``stop_gradient`` on its input gradients."""
    tx = optax.with_extra_args_support(tx)

    def update(
        updates: Params, state: optax.OptState, params: Params | None = None, **extra: Any
    ) -> tuple[Params, optax.OptState]:
        return tx.update(jax.lax.stop_gradient(updates), state, params, **extra)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def _learner(task: Task) -> Learner | None:
    """The learner of a supervised task, for estimators that compare parameters; None for other tasks."""
    if not isinstance(task, Supervised):
        return None

    def params(episode: Episode) -> Params:
        return task.solution(episode.inner)

    def loss(episode: Episode, params: Params) -> jax.Array:
        return task.loss(episode.problem.task_params, params, _key(episode, STEP))

    def outputs(episode: Episode, params: Params) -> Any:
        return task.outputs(episode.problem.task_params, params, _key(episode, STEP))

    has_outputs = type(task).outputs is not Supervised.outputs
    return Learner(params, loss, outputs if has_outputs else None)


def _key(episode: Episode, purpose: int) -> Key:
    return jax.random.fold_in(jax.random.fold_in(episode.key, episode.step), purpose)
