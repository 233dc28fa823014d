"""Variance of the estimate of one antithetic pair, over the number of windows of an episode.

theta and the episode are fixed: T steps in U windows, with estimates g_u of the gradients G_u of
the mean losses of the windows, and g the mean of the G_u. Two quantities are measured,

    window    mean_u tr Var(g_u) / mean_u |G_u|^2
    episode   tr Var(mean_u g_u) / |g|^2

``window`` is for outer steps that average n samples at random phases: the variance of their
gradient is 1/n (mean_u tr Var(g_u) + mean_u |G_u|^2 - |g|^2), in which only the first term
depends on the estimator. ``episode`` is for samples in lockstep, whose estimates are summed
over a whole episode while theta hardly changes.

If losses are linear or quadratic in the perturbations, both have closed forms. With D draws of
the noise in an episode (1 for ES-Single, U for PES), g_ud the gradient of the loss of window u
with respect to the theta of draw d, and B_u the number of draws up to window u,

    tr Var(g_u)        = P B_u sum_d |g_ud|^2 + |G_u|^2
    tr Var(sum_u g_u)  = P sum_cd |h_cd|^2 + sum_cd h_cd . h_dc,
                         h_cd = sum of g_ud over the windows u from draw max(c, d) on

so ES-Single has P + 1 in both, for any U. PES never has less in ``window``, by the
Cauchy-Schwarz inequality. In ``episode`` PES has less if all influences point in the same
direction, and far more if they cancel.

Sources: Vicol, arXiv:2304.11153, appendix D; Li et al., arXiv:2304.12180.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from meta_train.studies.estimator import estimates
from meta_train.studies.estimator.estimates import COMPILER
from meta_train.studies.estimator.problems import Studied
from metaopt.core import InnerProblem, Theta

KINDS = ("window", "episode")
EPISODE = 7  # seed of the episode that is studied


def influences(studied: Studied) -> np.ndarray:
    """(T, T, P) gradients of the loss of step t with respect to the theta of step s, zero for s > t."""
    return np.asarray(_influences(studied.problem, studied.horizon)(studied.theta), np.float64)


@functools.cache
def _influences(problem: InnerProblem, horizon: int) -> Callable[[Theta], jax.Array]:
    def all_pairs(theta: Theta) -> jax.Array:
        flat, unravel = ravel_pytree(theta)
        step = jax.checkpoint(lambda episode, theta: problem.step(unravel(theta), episode))

        def losses(thetas: jax.Array) -> jax.Array:
            episode = problem.reset(unravel(thetas[0]), jax.random.key(EPISODE), 0)
            return jax.lax.scan(step, episode, thetas)[1]

        return jax.jacrev(losses)(jnp.broadcast_to(flat, (horizon, flat.size)))

    return jax.jit(all_pairs, compiler_options=COMPILER)


def blocks(influence: np.ndarray, num_windows: int, num_draws: int) -> np.ndarray:
    """(U, D, P) gradients of the mean loss of each window with respect to the theta of each draw."""
    horizon, _, size = influence.shape
    grouped = influence.reshape(num_windows, horizon // num_windows, num_draws, horizon // num_draws, size)
    return grouped.mean(axis=1).sum(axis=2)


def closed_form(influence: np.ndarray, num_windows: int, num_draws: int) -> dict[str, float]:
    """The two quantities by their closed forms.

    Args:
      influence: (T, T, P), see ``influences``.
      num_windows: number of windows U.
      num_draws: number of draws D of the noise, which divides ``num_windows``.
    """
    g = blocks(influence, num_windows, num_draws)
    size, whole = g.shape[-1], g.sum(axis=1)
    draw = np.arange(num_windows) * num_draws // num_windows  # the draw of each window
    squares = (g**2).sum(axis=(1, 2))  # later draws have no influence
    window = np.sum(size * (draw + 1) * squares + (whole**2).sum(axis=1)) / np.sum(whole**2)
    # h_cd for c >= d is a sum over the windows from draw c on, else over the windows from draw d on.
    per_draw = g.reshape(num_draws, -1, num_draws, size).sum(axis=1)
    later = np.cumsum(per_draw[::-1], axis=0)[::-1]
    c, d = np.indices((num_draws, num_draws))
    h = later[np.maximum(c, d), d]
    episode = (size * np.sum(h**2) + np.einsum("cdp,dcp->", h, h)) / np.sum(whole.sum(axis=0) ** 2)
    return {"window": float(window), "episode": float(episode)}


def measured(drawn: np.ndarray, influence: np.ndarray) -> dict[str, list[float]]:
    """The two quantities from estimates, each as [value, low, high] with a 95 % interval.

    Args:
      drawn: (num, U, P) independent estimates.
      influence: (T, T, P), see ``influences``.
    """
    num, num_windows, _ = drawn.shape
    whole = blocks(influence, num_windows, 1)[:, 0]
    deviations = drawn - drawn.mean(axis=0, dtype=np.float64)
    squares = {
        "window": (deviations**2).sum(axis=(1, 2)) / np.sum(whole**2),
        "episode": (deviations.mean(axis=1) ** 2).sum(axis=1) / np.sum(whole.mean(axis=0) ** 2),
    }
    margin = {kind: 1.96 * s.std() / np.sqrt(num) for kind, s in squares.items()}
    mean = {kind: s.sum() / (num - 1) for kind, s in squares.items()}
    return {kind: [float(mean[kind] + sign * margin[kind]) for sign in (0, -1, 1)] for kind in KINDS}


def theory(influence: np.ndarray) -> dict[str, list[float]]:
    """The closed forms for PES at every number of windows that is a power of two."""
    counts = [2**i for i in range(len(influence).bit_length())]
    points = [closed_form(influence, u, u) for u in counts]
    return {"num_windows": counts, **{kind: [point[kind] for point in points] for kind in KINDS}}


def study(
    name: str, studied: Studied, influence: np.ndarray, num_windows: tuple[int, ...], num_pairs: int
) -> dict[str, Any]:
    """Measures an estimator at each number of windows.

    Args:
      name: name of the estimator.
      studied: inner problem with its theta and sigma.
      influence: (T, T, P), see ``influences``.
      num_windows: numbers of windows.
      num_pairs: number of antithetic pairs at each.
    """
    points = []
    for u in num_windows:
        episode, noise = jax.random.key(EPISODE), jax.random.key(u)
        drawn = estimates.draw(name, studied, studied.horizon // u, num_pairs, noise, episode)
        points.append(measured(drawn, influence))
    return {"num_windows": list(num_windows), **{kind: [point[kind] for point in points] for kind in KINDS}}
