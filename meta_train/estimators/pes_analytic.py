"""PES+A: persistent evolution strategies with the gradient of the current window."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from meta_train.estimators import backprop, es, samples, window
from meta_train.estimators.samples import Measured, Samples, Sampling
from metaopt.core import Estimator, InnerProblem, Theta


def pes_analytic(problem: InnerProblem, config: Sampling, mesh: Mesh) -> Estimator:
    """PES whose newest term is differentiated instead of sampled.

    With x_i the sum of the perturbations before this window, e_i this one's, and a_i the
    gradient of this window's loss from a third member that follows theta itself,

        g = mean_i  a_i + x_i (L+_i - L-_i - 2 e_i . a_i) / (2 sigma^2)

    e . a has mean zero given x and takes out the part of the difference that a already
    tells. Unbiased like PES, up to order sigma^2, as long as ``sample_clip`` does not
    shorten a, which it may have to where the local gradient explodes.

    Cost: three members and one window differentiated.

    Source: Vicol et al., arXiv:2112.13835, section on analytic gradients.
    """
    es.check(config)
    samples.refuse(config, "pes_analytic", "shaping")
    windows = window.build(problem, config.window, config.combine)
    noise = es.accumulated(config, 1)
    join = lambda pair, mean: jax.tree.map(lambda p, m: jnp.concatenate([p, m[None]]), pair, mean)

    def estimate_one(theta: Theta, sample: Samples, outer_step):
        eps, total, sample = noise.draw(theta, sample)
        before = jax.tree.map(jnp.subtract, total, eps)
        thetas = es.members(theta, eps, es.PAIR)

        def mean_member(theta):
            """The window of theta itself; the pair's start comes with it."""
            fresh = es.reset(windows, join(thetas, theta), sample, outer_step)
            episode = samples.begin(sample, fresh, config)
            ended, ran = windows.run(theta, es.take(episode, 2))
            return ran.loss, (episode, ended, ran)

        (loss, (episode, mean, mean_ran)), local = jax.value_and_grad(mean_member, has_aux=True)(theta)
        local = backprop.shorten(local, config.sample_clip)
        pair, ran = es.run(windows, thetas, es.take(episode, slice(0, 2)))
        slope = sum(jax.tree.leaves(jax.tree.map(lambda e, a: jnp.sum(e * a), eps, local)))
        factor = (ran.loss[0] - ran.loss[1] - 2 * slope) / (2 * config.sigma**2)
        ended = pair._replace(inner=join(pair.inner, mean.inner))
        return Measured(
            grad=jax.tree.map(lambda a, x: a + x * factor, local, before),
            valid=jnp.isfinite(factor),
            dead=samples.is_dead(ended),
            capped=(jnp.sum(ran.capped) + mean_ran.capped) / 3,
            inner_steps=3 * config.window,
            metrics={"meta_loss": loss, "difference": jnp.abs(ran.loss[0] - ran.loss[1])},
        ), samples.finish(sample, ended, samples.is_dead(ended))

    def init(theta, key):
        zeros = jax.tree.map(jnp.zeros_like, theta)
        start = lambda sample: es.reset(windows, es.members(theta, zeros, (*es.PAIR, 0.0)), sample, 0)
        return samples.init(config, key, start, noise.init(theta))

    return Estimator(init, samples.over_mesh(estimate_one, config, mesh))
