"""Forward mode: the inner state and its derivatives advance together, without truncation.

With directions d_j of theta and the tangents J d_j of the state s of every sample,

    J' d = dF/ds J d + dF/dtheta d,      g = mean_i sum_j (dL . d_j) d_j

    RTRL     the basis of theta     exact; costs 1 + P inner steps for each step, so it is
                                    for a few dozen meta-parameters
    DODGE    one normal direction   unbiased; costs 2 inner steps for each step; the limit
             per episode            of ES-Single as sigma goes to 0

theta changes between windows while the tangents are with respect to older values of it. The
estimates are exact only while theta does not change, as in every method whose episodes
continue over several outer steps.

Sources: Williams & Zipser, 1989; DODGE, Silver et al., ICLR 2022.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh

from meta_train.estimators import backprop, samples, window
from meta_train.estimators.samples import Measured, Samples, Sampling
from meta_train.estimators.window import WindowResult
from metaopt.core import Episode, Estimator, InnerProblem, Key, PyTree, Theta


def rtrl(problem: InnerProblem, config: Sampling, mesh: Mesh) -> Estimator:
    """Real-time recurrent learning: the exact gradient of every window.

    ``sigma`` above 0 smooths it, as in backpropagation.

    Memory: P inner states for each sample, with P the number of meta-parameters.
    """

    def basis(theta: Theta, sample: Samples) -> Theta:
        del sample
        flat, unravel = ravel_pytree(theta)
        return jax.vmap(unravel)(jnp.eye(flat.size))

    return _forward(problem, config, mesh, basis, config.sigma)


def dodge(problem: InnerProblem, config: Sampling, mesh: Mesh) -> Estimator:
    """Directional gradients: g = (dL . u) u with one u ~ N(0, I) for each episode.

    Its variance is that of ES-Single, (P + 1) |g|^2, without the bias of a finite sigma;
    ``sigma`` is not used.
    """

    def one_direction(theta: Theta, sample: Samples) -> Theta:
        return jax.tree.map(lambda u: u[None], samples.perturbation(theta, sample, 1.0))

    return _forward(problem, config, mesh, one_direction, 0.0)


def _forward(
    problem: InnerProblem,
    config: Sampling,
    mesh: Mesh,
    directions: Callable[[Theta, Samples], Theta],
    sigma: float,
) -> Estimator:
    """An estimator from derivatives along directions of theta.

    Args:
      problem: inner problem that the meta-gradient is taken through.
      config: settings that all estimators share.
      mesh: devices that the samples are sharded over.
      directions: ``(theta, sample) -> (num_directions, ...)`` directions, the same all through an episode.
      sigma: standard deviation of the smoothing of theta; 0 is none.
    """
    samples.refuse(config, "forward mode", "shaping")
    windows = window.build(problem, config.window, config.combine)

    def estimate_one(theta: Theta, sample: Samples, outer_step: jax.Array) -> tuple[Measured, Samples]:
        sample = sample._replace(draw=sample.draw + sample.done)
        along = directions(theta, sample)
        theta = backprop.perturbed(theta, sample, sigma)

        def begin(theta: Theta) -> Episode:
            fresh = windows.reset(theta, samples.subkey(sample, "episode"), outer_step)
            return samples.begin(sample, fresh, config)

        episode, fresh_tangents = _with_tangents(begin, theta, along)
        tangents = samples.where(sample.done, fresh_tangents, sample.memory)

        def run(theta: Theta, floats: list[jax.Array]) -> tuple[PyTree, tuple[Episode, WindowResult]]:
            ended, result = windows.run(theta, episode._replace(inner=_join(floats, episode.inner)))
            return (result.loss, _floats(ended.inner)), (ended, result)

        def derivative(direction: Theta, tangent: list[jax.Array]) -> PyTree:
            return jax.jvp(run, (theta, _floats(episode.inner)), (direction, tangent), has_aux=True)

        # With out_axes=None, what does not depend on the direction is computed once for all directions.
        over_directions = jax.vmap(derivative, out_axes=(None, 0, None))
        (loss, _), (slopes, tangents), (ended, result) = over_directions(along, tangents)
        grad = jax.tree.map(lambda d: jnp.tensordot(slopes, d, 1), along)
        dead = samples.is_dead(ended) | ~_finite(tangents)
        steps = config.window * (1 + slopes.size)
        measured = backprop.measure(grad, loss, dead, result.capped, steps, config.sample_clip)
        sample = samples.finish(sample, ended, dead)
        return measured, sample._replace(memory=tangents)

    def init(theta: Theta, key: Key) -> Samples:
        def start(sample: Samples) -> Episode:
            return windows.reset(theta, samples.subkey(sample, "episode"), 0)

        first = jax.tree.map(lambda x: x[0], samples.init(config, key))
        # Only the shapes of the tangents are used: they are zero, for the episode does not depend on the argument.
        _, tangents = _with_tangents(lambda theta: start(first), theta, directions(theta, first))
        return samples.init(config, key, start, tangents)

    return Estimator(init, samples.over_mesh(estimate_one, config, mesh))


def _with_tangents(begin: Callable[[Theta], Episode], theta: Theta, along: Theta) -> tuple[Episode, list[jax.Array]]:
    """The episode ``begin(theta)`` and the tangents of its inner state, (directions, ...)."""

    def run(theta: Theta) -> tuple[list[jax.Array], Episode]:
        episode = begin(theta)
        return _floats(episode.inner), episode

    def derivative(direction: Theta) -> tuple[list[jax.Array], Episode]:
        _, tangents, episode = jax.jvp(run, (theta,), (direction,), has_aux=True)
        return tangents, episode

    tangents, episode = jax.vmap(derivative, out_axes=(0, None))(along)
    return episode, tangents


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(jnp.asarray(x).dtype, jnp.inexact)


def _floats(inner: PyTree) -> list[jax.Array]:
    """The leaves that have a derivative; counters and keys have none."""
    return [x for x in jax.tree.leaves(inner) if _is_float(x)]


def _join(floats: list[jax.Array], inner: PyTree) -> PyTree:
    """``inner`` with its float leaves replaced by ``floats``."""
    leaves, tree = jax.tree.flatten(inner)
    remaining = iter(floats)
    return tree.unflatten([next(remaining) if _is_float(x) else x for x in leaves])


def _finite(tangents: list[jax.Array]) -> jax.Array:
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(t)) for t in tangents], bool))  # true if there are no tangents
