"""Variance of one pair against the number of windows an episode is cut into.

theta is fixed and the episode is frozen: T steps in U windows, with estimates g_u of
the gradients G_u of the windows' mean losses, g their mean. Two quantities,

    window    mean_u tr Var(g_u) / mean_u |G_u|^2
    episode   tr Var(mean_u g_u) / |g|^2

``window`` is what an outer step sees that averages n samples at random phases: the
variance of its gradient is 1/n (mean_u tr Var(g_u) + mean_u |G_u|^2 - |g|^2), and
only the first term is the estimator's doing. ``episode`` is what remains once samples
in lockstep have added up a whole episode, while theta hardly moved.

Where losses are linear in the perturbations, or quadratic, both have closed forms.
With D draws of the noise an episode (1 for ES-Single, U for PES), g_ud the gradient of
the loss of window u to the theta of draw d, B_u draws until window u,

    tr Var(g_u)        = P B_u sum_d |g_ud|^2 + |G_u|^2
    tr Var(sum_u g_u)  = P sum_cd |h_cd|^2 + sum_cd h_cd . h_dc,
                         h_cd = sum of g_ud over the windows u from draw max(c, d) on

so ES-Single has P + 1 in both, whatever U. PES never has less in ``window``, by the
inequality of Cauchy and Schwarz. In ``episode`` it does where all influences point the
same way, and has far more where they cancel.

Sources: Vicol, arXiv:2304.11153, appendix D; Li et al., arXiv:2304.12180.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from meta_train.studies.estimator import estimates
from meta_train.studies.estimator.estimates import COMPILER
from meta_train.studies.estimator.problems import Studied
from metaopt.core import InnerProblem, Theta

KINDS = ("window", "episode")
EPISODE = 7  # seed of the one that is studied, data included


def influences(studied: Studied) -> np.ndarray:
    """(T, T, P) gradient of the loss of step t to the theta of step s, zero for s > t."""
    return np.asarray(_influences(studied.problem, studied.horizon)(studied.theta), np.float64)


@functools.cache
def _influences(problem: InnerProblem, horizon: int) -> Callable[[Theta], jax.Array]:
    def all_pairs(theta):
        flat, unravel = ravel_pytree(theta)
        step = jax.checkpoint(lambda episode, theta: problem.step(unravel(theta), episode))

        def losses(thetas):
            episode = problem.reset(unravel(thetas[0]), jax.random.key(EPISODE), 0)
            return jax.lax.scan(step, episode, thetas)[1]

        return jax.jacrev(losses)(jnp.broadcast_to(flat, (horizon, flat.size)))

    return jax.jit(all_pairs, compiler_options=COMPILER)


def blocks(influence: np.ndarray, num_windows: int, num_draws: int) -> np.ndarray:
    """(U, D, P) gradient of the mean loss of each window to the theta of each draw."""
    horizon, _, size = influence.shape
    cut = influence.reshape(num_windows, horizon // num_windows, num_draws, horizon // num_draws, size)
    return cut.mean(axis=1).sum(axis=2)


def closed_form(influence: np.ndarray, num_windows: int, num_draws: int) -> dict[str, float]:
    """The two quantities in the linear regime; ``num_draws`` must divide ``num_windows``."""
    g = blocks(influence, num_windows, num_draws)
    size, whole = g.shape[-1], g.sum(axis=1)
    draw = np.arange(num_windows) * num_draws // num_windows  # of each window
    squares = (g**2).sum(axis=(1, 2))  # draws to come have no influence
    window = np.sum(size * (draw + 1) * squares + (whole**2).sum(axis=1)) / np.sum(whole**2)
    # h_cd for c >= d is a sum over the windows from draw c on, else over those from d on.
    per_draw = g.reshape(num_draws, -1, num_draws, size).sum(axis=1)
    later = np.cumsum(per_draw[::-1], axis=0)[::-1]
    c, d = np.indices((num_draws, num_draws))
    h = later[np.maximum(c, d), d]
    episode = (size * np.sum(h**2) + np.einsum("cdp,dcp->", h, h)) / np.sum(whole.sum(axis=0) ** 2)
    return {"window": float(window), "episode": float(episode)}


def measured(drawn: np.ndarray, influence: np.ndarray) -> dict[str, list[float]]:
    """The two quantities from (num, U, P) estimates, each [value, low, high], a 95 % interval."""
    num, num_windows, _ = drawn.shape
    whole = blocks(influence, num_windows, 1)[:, 0]
    deviations = drawn - drawn.mean(axis=0, dtype=np.float64)
    squares = {
        "window": (deviations**2).sum(axis=(1, 2)) / np.sum(whole**2),
        "episode": (deviations.mean(axis=1) ** 2).sum(axis=1) / np.sum(whole.mean(axis=0) ** 2),
    }
    half = {kind: 1.96 * s.std() / np.sqrt(num) for kind, s in squares.items()}
    mean = {kind: s.sum() / (num - 1) for kind, s in squares.items()}
    return {kind: [float(mean[kind] + sign * half[kind]) for sign in (0, -1, 1)] for kind in KINDS}


def theory(influence: np.ndarray) -> dict[str, list[float]]:
    """The closed forms of PES at every number of windows that is a power of two."""
    counts = [2**i for i in range(len(influence).bit_length())]
    points = [closed_form(influence, u, u) for u in counts]
    return {"num_windows": counts, **{kind: [point[kind] for point in points] for kind in KINDS}}


def study(name: str, studied: Studied, influence: np.ndarray, num_windows: tuple[int, ...], num_pairs: int) -> dict:
    """Measures an estimator at each number of windows."""
    points = []
    for u in num_windows:
        episode, noise = jax.random.key(EPISODE), jax.random.key(u)
        points.append(
            measured(estimates.draw(name, studied, studied.horizon // u, num_pairs, noise, episode), influence)
        )
    return {"num_windows": list(num_windows), **{kind: [point[kind] for point in points] for kind in KINDS}}
