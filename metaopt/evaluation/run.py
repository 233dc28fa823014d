"""Training runs for a comparison: many rates and seeds in one compiled program."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metaopt.core import Key, Task, scaled_updates


class Curves(NamedTuple):
    """Losses along a run, at steps 0, every, 2 * every, ..., num_steps.

    A loss that is not finite stays so: what diverged is not mended.
    """

    train: jax.Array  # (..., num_points)
    valid: jax.Array  # (..., num_points)
    test: jax.Array  # (...) at the end


def trainer(task: Task, make: Callable[[jax.Array], optax.GradientTransformation], num_steps: int, every: int):
    """Returns ``(rates, problem_key, seed_keys) -> Curves`` with axes (rates, seeds).

    The problem is drawn from its own key and stays the same for all; initial
    parameters and batches come from the seed, so runs with the same seed are paired
    whatever the optimizer.

    Args:
      task: what to train on.
      make: ``rate -> optimizer``; the rate is traced.
      num_steps: of a run.
      every: steps between two evaluations; divides num_steps.
    """

    def one(rate: jax.Array, problem_key: Key, seed_key: Key) -> Curves:
        tx = optax.with_extra_args_support(make(rate))
        task_params = task.sample(problem_key)
        k_params, k_data = jax.random.split(seed_key)
        params = task.init(task_params, k_params)

        def step(carry, t):
            params, state = carry
            key = jax.random.fold_in(k_data, t)
            value_fn = lambda params: task.loss(task_params, params, key)
            value, grads = jax.value_and_grad(value_fn)(params)
            updates, state = tx.update(grads, state, params, value=value, value_fn=value_fn)
            updates = scaled_updates(task, task_params, updates)
            return (optax.apply_updates(params, updates), state), None

        def block(carry, first):
            carry, _ = jax.lax.scan(step, carry, first + jnp.arange(every))
            return carry, measure(carry[0])

        def measure(params):
            return tuple(task.evaluate(task_params, params, split)["loss"] for split in ("train", "valid"))

        start = measure(params)
        (params, _), rest = jax.lax.scan(block, (params, tx.init(params)), jnp.arange(0, num_steps, every))
        train, valid = (jnp.concatenate([a[None], b]) for a, b in zip(start, rest, strict=True))
        return Curves(train, valid, task.evaluate(task_params, params, "test")["loss"])

    over_seeds = jax.vmap(one, in_axes=(None, None, 0))
    return jax.jit(jax.vmap(over_seeds, in_axes=(0, None, None)))
