"""Independent estimates of one sample each, with theta fixed."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from meta_train import estimators
from meta_train.estimators.samples import Sampling
from meta_train.parallel import devices
from meta_train.studies.estimator.problems import Studied
from metaopt.core import InnerProblem, Key, Theta

SIDE_BY_SIDE = 16  # episodes in one call; more of them leave the cache

# Much of a study is compiling. Costs in time are of programs compiled like this too.
COMPILER = {"xla_backend_optimization_level": 1}

Run = Callable[[Theta, float, Key, Key], jax.Array]


@functools.cache
def build(name: str, problem: InnerProblem, horizon: int, window: int) -> Run:
    """Returns ``(theta, sigma, noise (num,), data (num,)) -> (num, U, P)``: an episode for each pair of keys.

    ``noise`` decides the perturbations, ``data`` the episode. The U estimates are those
    of its windows, U = 1 where an estimate is a whole episode; their mean estimates the
    gradient of the mean loss.

    The estimator sees phi = (theta' - theta) / sigma, at zero and with sigma = 1: what is
    compiled once serves every theta and sigma.
    """
    sampling = Sampling(num_samples=1, window=window, sigma=1.0, staggered=False)

    def episode(theta, sigma, noise, data):
        flat, unravel = ravel_pytree(theta)
        at = lambda phi: unravel(flat + sigma * phi)
        around = problem._replace(
            reset=lambda phi, _, outer_step: problem.reset(at(phi), data, outer_step),
            step=lambda phi, episode: problem.step(at(phi), episode),
        )
        estimator = estimators.build(name, around, sampling, devices.mesh(1))
        center = jnp.zeros_like(flat)
        state = estimator.init(center, noise)
        num_windows = horizon // window if state.episode else 1

        def body(state, _):
            grad, state, _ = estimator.estimate(center, state, 0)
            return state, grad / sigma

        return jax.lax.scan(body, state, length=num_windows)[1]

    return jax.jit(jax.vmap(episode, in_axes=(None, None, 0, 0)), compiler_options=COMPILER)


def draw(name: str, studied: Studied, window: int, num: int, key: Key, data: Key | None = None) -> np.ndarray:
    """(num, U, P) estimates; all of the episode ``data``, or each of one of its own."""
    run, calls = build(name, studied.problem, studied.horizon, window), []
    for call in range(-(-num // SIDE_BY_SIDE)):
        k_noise, k_data = jax.random.split(jax.random.fold_in(key, call))
        own = jax.random.split(k_data, SIDE_BY_SIDE)
        same = own if data is None else jnp.broadcast_to(data, (SIDE_BY_SIDE,))
        noise = jax.random.split(k_noise, SIDE_BY_SIDE)
        calls.append(np.asarray(run(studied.theta, studied.sigma, noise, same)))
    return np.concatenate(calls)[:num]
