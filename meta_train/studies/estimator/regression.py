"""Toy regression: how far each estimator gets on a chaotic meta-loss.

theta = (theta_0, theta_1) is the logarithm of a learning rate at the start and the end
of 100 steps, begun from (-4, -4). The meta-loss falls gently to a good region and is
rugged at a scale far below sigma, so that local gradients say nothing of its shape.

Settings of the source: 50 pairs in lockstep, 10 windows of 10 steps, Adam 1e-2 with
b1 = 0.99, sigma 0.3 and 1.0 for truncated ES. Methods that differentiate take the exact
gradient at theta, where all samples would be the same.

Source: Vicol et al., arXiv:2112.13835, appendix.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from meta_train import estimators, outer
from meta_train.estimators import window
from meta_train.estimators.samples import Sampling
from meta_train.inner import toys
from meta_train.parallel import devices

HORIZON, WINDOW, START = 100, 10, (-4.0, -4.0)
SURFACE = (-6.0, 4.0, 81)  # theta from, to, and at how many points
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
    """() mean loss of an episode at (2,) theta itself."""
    problem = toys.toy_regression(HORIZON)
    return window.build(problem, HORIZON).run(theta, problem.reset(theta, jax.random.key(0), 0))[1].loss


def solve(name: str, outer_steps: int, num_points: int, num_seeds: int) -> dict:
    """theta (num_seeds, num_points + 1, 2) on its way, and its meta-loss."""
    estimator = estimators.build(name, toys.toy_regression(HORIZON), SETTINGS[name], devices.mesh(1))
    program = outer.build([estimator], optax.adam(1e-2, b1=0.99), clip=jnp.inf)

    def run(key):
        def some(state, _):
            state, _ = jax.lax.scan(lambda s, _: program.step(s), state, length=outer_steps // num_points)
            return state, state.theta

        start = jnp.array(START)
        thetas = jax.lax.scan(some, program.init(start, key), length=num_points)[1]
        return jnp.concatenate([start[None], thetas])

    thetas = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), num_seeds))
    losses = jax.jit(jax.vmap(jax.vmap(meta_loss)))(thetas)
    return {"theta": np.asarray(thetas), "meta_loss": np.asarray(losses)}


def surface(low: float, high: float, num: int) -> np.ndarray:
    """(num, num) meta-loss over theta_1 (rows) and theta_0."""
    axis = jnp.linspace(low, high, num)
    theta = jnp.stack(jnp.meshgrid(axis, axis), axis=-1)
    return np.asarray(jax.jit(jax.vmap(jax.vmap(meta_loss)))(theta))


def study(outer_steps: int, num_points: int, num_seeds: int) -> dict:
    """The meta-losses of all estimators on their way, theta of the first seed, and the surface."""
    solved = {name: solve(name, outer_steps, num_points, num_seeds) for name in SETTINGS}
    losses = surface(*SURFACE)
    return {
        "outer_steps": list(range(0, outer_steps + 1, outer_steps // num_points)),
        "theta_at_the_start": START,
        "start": float(meta_loss(jnp.array(START))),
        "lowest_on_the_surface": float(losses.min()),
        "estimators": {
            name: {"sigma": SETTINGS[name].sigma, "meta_loss": run["meta_loss"], "theta_of_seed_0": run["theta"][0]}
            for name, run in solved.items()
        },
        "surface": {"low": SURFACE[0], "high": SURFACE[1], "meta_loss": losses},
    }
