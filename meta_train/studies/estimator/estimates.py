"""Independent estimates from one sample each, at a fixed theta."""

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
from metaopt.core import Episode, InnerProblem, Key, PyTree, Theta

SIDE_BY_SIDE = 16  # episodes in one call; more would not fit into the cache

# Less optimization, because much of the time of a study is compilation; measured costs are those of such programs.
COMPILER = {"xla_backend_optimization_level": 1}

Estimates = Callable[[Theta, float, Key, Key], jax.Array]


@functools.cache
def build(name: str, problem: InnerProblem, horizon: int, window: int) -> Estimates:
    """Returns ``(theta, sigma, noise (num,), data (num,)) -> (num, U, P)``: an episode for each pair of keys.

    ``noise`` are the keys of the perturbations, ``data`` those of the episodes. The U estimates are
    those of the windows of an episode, with U = 1 if an estimate is a whole episode; their mean
    estimates the gradient of the mean loss.

    The estimator is built for the variable phi = (theta' - theta) / sigma, at phi = 0 and with
    sigma = 1, so that it is compiled only once for all theta and sigma.

    Args:
      name: name of the estimator.
      problem: inner problem.
      horizon: inner steps of an episode.
      window: inner steps of a window.
    """
    sampling = Sampling(num_samples=1, window=window, sigma=1.0, staggered=False)

    def one_episode(theta: Theta, sigma: jax.Array, noise: Key, data: Key) -> jax.Array:
        flat, unravel = ravel_pytree(theta)

        def reset(phi: jax.Array, _: Key, outer_step: jax.Array | int) -> Episode:
            return problem.reset(unravel(flat + sigma * phi), data, outer_step)

        def step(phi: jax.Array, episode: Episode) -> tuple[Episode, jax.Array]:
            return problem.step(unravel(flat + sigma * phi), episode)

        centered = problem._replace(reset=reset, step=step)
        estimator = estimators.build(name, centered, sampling, devices.mesh(1))
        center = jnp.zeros_like(flat)
        state = estimator.init(center, noise)
        num_windows = horizon // window if state.episode else 1

        def estimate(state: PyTree, _: None) -> tuple[PyTree, jax.Array]:
            grad, state, _metrics = estimator.estimate(center, state, 0)
            return state, grad / sigma

        return jax.lax.scan(estimate, state, length=num_windows)[1]

    return jax.jit(jax.vmap(one_episode, in_axes=(None, None, 0, 0)), compiler_options=COMPILER)


def draw(name: str, studied: Studied, window: int, num: int, key: Key, data: Key | None = None) -> np.ndarray:
    """Draws independent estimates.

    Args:
      name: name of the estimator.
      studied: inner problem with its theta and sigma.
      window: inner steps of a window.
      num: number of estimates.
      key: random key.
      data: key of the one episode of all estimates; None draws an episode for each.

    Returns:
      (num, U, P), see ``build``.
    """
    run, calls = build(name, studied.problem, studied.horizon, window), []
    for call in range(-(-num // SIDE_BY_SIDE)):
        k_noise, k_data = jax.random.split(jax.random.fold_in(key, call))
        if data is None:
            episodes = jax.random.split(k_data, SIDE_BY_SIDE)
        else:
            episodes = jnp.broadcast_to(data, (SIDE_BY_SIDE,))
        noise = jax.random.split(k_noise, SIDE_BY_SIDE)
        calls.append(np.asarray(run(studied.theta, studied.sigma, noise, episodes)))
    return np.concatenate(calls)[:num]
