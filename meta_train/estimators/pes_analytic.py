"""PES+A: persistent evolution strategies with the gradient of the current window."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from meta_train.estimators import backprop, es, samples, window
from meta_train.estimators.samples import Measured, Samples, Sampling
from meta_train.estimators.window import WindowResult
from metaopt.core import Episode, Estimator, InnerProblem, Key, PyTree, Theta


def pes_analytic(problem: InnerProblem, config: Sampling, mesh: Mesh) -> Estimator:
    """PES whose newest term is differentiated instead of sampled.

    With x_i the sum of the perturbations before this window, e_i the perturbation of this
    window, and a_i the gradient of the loss of this window for a third member, which has
    theta without a perturbation,

        g = mean_i  a_i + x_i (L+_i - L-_i - 2 e_i . a_i) / (2 sigma^2)

    e . a has mean zero given x and is a control variate: it removes from the difference what
    a already explains. Unbiased like PES, up to order sigma^2, as long as ``sample_clip``
    does not clip a, which may be needed where the local gradient explodes.

    Cost: three members and one window differentiated.

    Source: Vicol et al., arXiv:2112.13835, section on analytic gradients.
    """
    es.check(config)
    samples.refuse(config, "pes_analytic", "shaping")
    windows = window.build(problem, config.window, config.combine)
    noise = es.accumulated(config, 1)

    def join(pair: PyTree, third: PyTree) -> PyTree:
        return jax.tree.map(lambda p, t: jnp.concatenate([p, t[None]]), pair, third)

    def estimate_one(theta: Theta, sample: Samples, outer_step: jax.Array) -> tuple[Measured, Samples]:
        eps, total, sample = noise.draw(theta, sample)
        before = jax.tree.map(jnp.subtract, total, eps)
        thetas = es.members(theta, eps, es.PAIR)

        def third_member(theta: Theta) -> tuple[jax.Array, tuple[Episode, Episode, WindowResult]]:
            """The window of theta itself, and the episode of all members at its start."""
            fresh = es.reset(windows, join(thetas, theta), sample, outer_step)
            episode = samples.begin(sample, fresh, config)
            ended, result = windows.run(theta, es.take(episode, 2))
            return result.loss, (episode, ended, result)

        (loss, (episode, third, third_result)), local = jax.value_and_grad(third_member, has_aux=True)(theta)
        local = backprop.clipped(local, config.sample_clip)
        pair, result = es.run(windows, thetas, es.take(episode, slice(0, 2)))
        slope = sum(jax.tree.leaves(jax.tree.map(lambda e, a: jnp.sum(e * a), eps, local)))
        factor = (result.loss[0] - result.loss[1] - 2 * slope) / (2 * config.sigma**2)
        ended = pair._replace(inner=join(pair.inner, third.inner))
        return Measured(
            grad=jax.tree.map(lambda a, x: a + x * factor, local, before),
            valid=jnp.isfinite(factor),
            dead=samples.is_dead(ended),
            capped=(jnp.sum(result.capped) + third_result.capped) / 3,
            inner_steps=3 * config.window,
            metrics={"meta_loss": loss, "difference": jnp.abs(result.loss[0] - result.loss[1])},
        ), samples.finish(sample, ended, samples.is_dead(ended))

    def init(theta: Theta, key: Key) -> Samples:
        zeros = jax.tree.map(jnp.zeros_like, theta)

        def start(sample: Samples) -> Episode:
            return es.reset(windows, es.members(theta, zeros, (*es.PAIR, 0.0)), sample, 0)

        return samples.init(config, key, start, noise.init(theta))

    return Estimator(init, samples.over_mesh(estimate_one, config, mesh))
