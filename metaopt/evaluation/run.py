"""Training runs for a comparison: many rates and seeds in one compiled program."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metaopt.core import Algorithm, Key, PyTree, Task


class Curves(NamedTuple):
    """Losses in the course of a training run, at steps 0, every, 2 * every, ..., num_steps.

    Losses that are not finite are kept as they are.
    """

    train: jax.Array  # (..., num_points)
    valid: jax.Array  # (..., num_points)
    test: jax.Array  # (...) final loss


def trainer(
    task: Task, make: Callable[[jax.Array], Algorithm], num_steps: int, every: int
) -> Callable[[Any, Key, jax.Array], Curves]:
    """Returns ``(rates, problem_key, seed_keys) -> Curves`` with axes (rates, seeds).

    The problem is drawn with its own key and is the same for all rates and seeds. Initial
    parameters and all other randomness depend on the seed only, so that training runs with the same
    seed are paired, whatever the algorithm. The step is ``task.step``, as in meta-training.

    Args:
      task: task that the problem is drawn from.
      make: ``rate -> algorithm``; the rate is traced.
      num_steps: steps of a training run.
      every: steps between two evaluations of the losses; divides num_steps.
    """

    def one_run(rate: jax.Array, problem_key: Key, seed_key: Key) -> Curves:
        algorithm = make(rate)
        task_params = task.sample(problem_key)
        k_init, k_steps = jax.random.split(seed_key)
        start = task.start(algorithm, task_params, task.init(task_params, k_init))

        def step(state: PyTree, t: jax.Array) -> tuple[PyTree, None]:
            state, _ = task.step(algorithm, task_params, state, jax.random.fold_in(k_steps, t))
            return state, None

        def steps_between_evaluations(state: PyTree, first: jax.Array) -> tuple[PyTree, tuple[jax.Array, jax.Array]]:
            state, _ = jax.lax.scan(step, state, first + jnp.arange(every))
            return state, measure(state)

        def measure(state: PyTree) -> tuple[jax.Array, jax.Array]:
            return measure_split(state, "train"), measure_split(state, "valid")

        def measure_split(state: PyTree, split: str) -> jax.Array:
            return task.evaluate(task_params, task.solution(state), split, None)["loss"]

        first = measure(start)
        state, rest = jax.lax.scan(steps_between_evaluations, start, jnp.arange(0, num_steps, every))
        train, valid = (jnp.concatenate([a[None], b]) for a, b in zip(first, rest, strict=True))
        return Curves(train, valid, measure_split(state, "test"))

    over_seeds = jax.vmap(one_run, in_axes=(None, None, 0))
    return jax.jit(jax.vmap(over_seeds, in_axes=(0, None, None)))
