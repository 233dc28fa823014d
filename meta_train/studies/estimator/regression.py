"""Toy regression: the meta-loss that each estimator reaches on a chaotic problem.

theta = (theta_0, theta_1) is the logarithm of the learning rate at the start and at the end of
100 steps, with initial value (-4, -4). On a large scale the meta-loss decreases smoothly to a
good region, but it is rugged on scales far below sigma, so that local gradients carry no
information about its shape.

Settings of the source: 50 pairs in lockstep, 10 windows of 10 steps, Adam 1e-2 with
b1 = 0.99, sigma 0.3 and 1.0 for truncated ES. Methods that differentiate take the exact
gradient at theta, where all samples would be the same.

Source: Vicol et al., arXiv:2112.13835, appendix.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from meta_train import estimators, outer
from meta_train.estimators import window
from meta_train.estimators.samples import Sampling
from meta_train.inner import toys
from meta_train.outer import TrainState
from meta_train.parallel import devices
from metaopt.core import Key, Theta

HORIZON, WINDOW, START = 100, 10, (-4.0, -4.0)
SURFACE = (-6.0, 4.0, 81)  # lowest theta, highest theta, and number of points on each axis
PAIRS = Sampling(num_samples=50, window=WINDOW, sigma=0.3, staggered=False)
EXACT = Sampling(num_samples=1, window=WINDOW, sigma=0.0, staggered=False)
SETTINGS = {
    "es": PAIRS,
    "es_single": PAIRS,
    "pes": PAIRS,
    "gpes": PAIRS,
    "es_gen": PAIRS,
    "pes_analytic": PAIRS,
    "truncated_es": Sampling(num_samples=50, window=WINDOW, sigma=1.0, staggered=False),
    "dodge": PAIRS,
    "rtrl": EXACT,
    "tbptt": EXACT,
    "backprop": EXACT,
}


def meta_loss(theta: jax.Array) -> jax.Array:
    """The () mean loss of an episode at theta (2,), without perturbations."""
    problem = toys.toy_regression(HORIZON)
    return window.build(problem, HORIZON).run(theta, problem.reset(theta, jax.random.key(0), 0))[1].loss


def solve(name: str, outer_steps: int, num_points: int, num_seeds: int) -> dict[str, np.ndarray]:
    """Meta-trains with one estimator.

    Args:
      name: name of the estimator.
      outer_steps: number of outer steps.
      num_points: number of points at which theta is recorded, besides its initial value.
      num_seeds: number of seeds.

    Returns:
      "theta" (num_seeds, num_points + 1, 2) and its "meta_loss" (num_seeds, num_points + 1).
    """
    estimator = estimators.build(name, toys.toy_regression(HORIZON), SETTINGS[name], devices.mesh(1))
    program = outer.build([estimator], optax.adam(1e-2, b1=0.99), clip=jnp.inf)

    def one_seed(key: Key) -> jax.Array:
        def to_next_point(state: TrainState, _: None) -> tuple[TrainState, Theta]:
            state = jax.lax.scan(lambda s, _: program.step(s), state, length=outer_steps // num_points)[0]
            return state, state.theta

        start = jnp.array(START)
        thetas = jax.lax.scan(to_next_point, program.init(start, key), length=num_points)[1]
        return jnp.concatenate([start[None], thetas])

    thetas = jax.jit(jax.vmap(one_seed))(jax.random.split(jax.random.key(0), num_seeds))
    losses = jax.jit(jax.vmap(jax.vmap(meta_loss)))(thetas)
    return {"theta": np.asarray(thetas), "meta_loss": np.asarray(losses)}


def surface(low: float, high: float, num: int) -> np.ndarray:
    """The meta-loss (num, num) on a grid of theta_1 (rows) and theta_0 (columns) between ``low`` and ``high``."""
    axis = jnp.linspace(low, high, num)
    theta = jnp.stack(jnp.meshgrid(axis, axis), axis=-1)
    return np.asarray(jax.jit(jax.vmap(jax.vmap(meta_loss)))(theta))


def study(outer_steps: int, num_points: int, num_seeds: int) -> dict[str, Any]:
    """The meta-losses of all estimators in the course of meta-training, theta of the first seed, and the surface.

    Args:
      outer_steps: number of outer steps.
      num_points: number of points at which theta is recorded, besides its initial value.
      num_seeds: number of seeds of each estimator.
    """
    solved = {name: solve(name, outer_steps, num_points, num_seeds) for name in SETTINGS}
    losses = surface(*SURFACE)
    return {
        "outer_steps": list(range(0, outer_steps + 1, outer_steps // num_points)),
        "theta_at_the_start": START,
        "start": float(meta_loss(jnp.array(START))),
        "lowest_on_the_surface": float(losses.min()),
        "estimators": {
            name: {"sigma": SETTINGS[name].sigma, "meta_loss": r["meta_loss"], "theta_of_seed_0": r["theta"][0]}
            for name, r in solved.items()
        },
        "surface": {"low": SURFACE[0], "high": SURFACE[1], "meta_loss": losses},
    }
