"""Forward mode: derivatives of the inner state carried along with it, not truncated.

With directions d_j of theta and the tangents J d_j of the state s of every sample,

    J' d = dF/ds J d + dF/dtheta d,      g = mean_i sum_j (dL . d_j) d_j

    RTRL     the basis of theta     exact; P inner steps for one, for a few dozen
                                    meta-parameters
    DODGE    one normal direction   unbiased; two inner steps for one; the limit of
             per episode            ES-Single as sigma goes to 0

theta moves between windows while tangents of older theta are kept; exact only for
theta at rest, like every method that goes on with its episodes.

Sources: Williams & Zipser, 1989; DODGE, Silver et al., ICLR 2022.
"""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh

from meta_train.estimators import backprop, samples, window
from meta_train.estimators.samples import Samples, Sampling
from metaopt.core import Estimator, InnerProblem, PyTree, Theta


def rtrl(problem: InnerProblem, config: Sampling, mesh: Mesh) -> Estimator:
    """Real-time recurrent learning: the exact gradient, window by window.

    ``sigma`` above 0 smooths it, as in backpropagation. Memory: P inner states a sample.
    """

    def basis(theta, sample):
        del sample
        flat, unravel = ravel_pytree(theta)
        return jax.vmap(unravel)(jnp.eye(flat.size))

    return _forward(problem, config, mesh, basis, config.sigma)


def dodge(problem: InnerProblem, config: Sampling, mesh: Mesh) -> Estimator:
    """Directional gradients: g = (dL . u) u with u ~ N(0, I), one for an episode.

    Its variance is that of ES-Single, (P + 1) |g|^2, without the bias of a finite sigma;
    ``sigma`` is not used.
    """

    def one(theta, sample):
        return jax.tree.map(lambda u: u[None], samples.perturbation(theta, sample, 1.0))

    return _forward(problem, config, mesh, one, 0.0)


def _forward(problem: InnerProblem, config: Sampling, mesh: Mesh, directions, sigma: float) -> Estimator:
    samples.refuse(config, "forward mode", "shaping")
    windows = window.build(problem, config.window, config.combine)

    def estimate_one(theta: Theta, sample: Samples, outer_step):
        sample = sample._replace(draw=sample.draw + sample.done)
        along = directions(theta, sample)
        theta = backprop.perturbed(theta, sample, sigma)

        def begin(theta):
            fresh = windows.reset(theta, samples.subkey(sample, "episode"), outer_step)
            return samples.begin(sample, fresh, config)

        episode, fresh_tangents = _begin(begin, theta, along)
        tangents = samples.where(sample.done, fresh_tangents, sample.memory)

        def run(theta, floats):
            ended, ran = windows.run(theta, episode._replace(inner=_join(floats, episode.inner)))
            return (ran.loss, _floats(ended.inner)), (ended, ran)

        def slope(direction, tangent):
            return jax.jvp(run, (theta, _floats(episode.inner)), (direction, tangent), has_aux=True)

        # What does not depend on the direction is computed once for all of them.
        (loss, _), (slopes, tangents), (ended, ran) = jax.vmap(slope, out_axes=(None, 0, None))(along, tangents)
        grad = jax.tree.map(lambda d: jnp.tensordot(slopes, d, 1), along)
        dead = samples.is_dead(ended) | ~_finite(tangents)
        steps = config.window * (1 + slopes.size)
        measured = backprop.measure(grad, loss, dead, ran.capped, steps, config.sample_clip)
        sample = samples.finish(sample, ended, dead)
        return measured, sample._replace(memory=tangents)

    def init(theta, key):
        start = lambda sample: windows.reset(theta, samples.subkey(sample, "episode"), 0)
        probe = samples.init(config, key)
        one = jax.tree.map(lambda x: x[0], probe)
        tangents = _begin(lambda theta: start(one), theta, directions(theta, one))[1]
        return samples.init(config, key, start, tangents)

    return Estimator(init, samples.over_mesh(estimate_one, config, mesh))


def _begin(begin, theta: Theta, along: Theta):
    """An episode and the tangents of its inner state where it begins, (directions, ...)."""

    def run(theta):
        episode = begin(theta)
        return _floats(episode.inner), episode

    def slope(direction):
        _, tangents, episode = jax.jvp(run, (theta,), (direction,), has_aux=True)
        return tangents, episode

    tangents, episode = jax.vmap(slope, out_axes=(0, None))(along)
    return episode, tangents


def _is_float(x) -> bool:
    return jnp.issubdtype(jnp.asarray(x).dtype, jnp.inexact)


def _floats(inner: PyTree) -> list[jax.Array]:
    """The leaves that have a derivative; counters and keys have none."""
    return [x for x in jax.tree.leaves(inner) if _is_float(x)]


def _join(floats: list[jax.Array], inner: PyTree) -> PyTree:
    leaves, tree = jax.tree.flatten(inner)
    remaining = iter(floats)
    return tree.unflatten([next(remaining) if _is_float(x) else x for x in leaves])


def _finite(tangents: list[jax.Array]) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(t)) for t in tangents]))
