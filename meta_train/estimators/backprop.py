"""Reverse mode: backpropagation through a window or through whole episodes."""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from meta_train.estimators import samples, window
from meta_train.estimators.samples import Measured, Samples, Sampling
from metaopt.core import Estimator, InnerProblem, Theta
from metaopt.errors import UserError


def tbptt(problem: InnerProblem, config: Sampling, mesh: Mesh) -> Estimator:
    """Truncated backpropagation through time: a window, with its start held constant.

        g = mean_i  grad_theta L(theta + e_i; s_i),   e_i ~ N(0, sigma^2), one for an episode

    It is the gradient of the loss that evolution strategies smooth with the same
    ``sigma``, without their noise: one sample is worth about as many pairs as theta
    has entries. It is biased, for it does not see what a window does to later ones;
    where training is chaotic single gradients explode, and ``sample_clip`` limits
    them. ``sigma=0`` is the classical method.

    Memory: the inner states of a window; a step is run once more in the reverse pass.

    Sources: Werbos, 1990; smoothed, Metz et al., arXiv:1810.10180.
    """
    samples.refuse(config, "truncated backpropagation", "shaping")
    windows = window.build(problem, config.window, config.combine)

    def loss_of(theta: Theta, sample: Samples, outer_step):
        # An episode that begins here may begin from theta: only what came before is held constant.
        fresh = windows.reset(theta, samples.subkey(sample, "episode"), outer_step)
        episode = samples.begin(sample, fresh, config)
        ended, ran = windows.run(theta, episode)
        return ran.loss, (ended, ran)

    def estimate_one(theta: Theta, sample: Samples, outer_step):
        sample = sample._replace(draw=sample.draw + sample.done)
        theta = perturbed(theta, sample, config.sigma)
        (loss, (ended, ran)), grad = jax.value_and_grad(loss_of, has_aux=True)(theta, sample, outer_step)
        measured = measure(grad, loss, samples.is_dead(ended), ran.capped, config.window, config.sample_clip)
        return measured, samples.finish(sample, ended, measured.dead)

    def init(theta, key):
        return samples.init(config, key, lambda sample: windows.reset(theta, samples.subkey(sample, "episode"), 0))

    return Estimator(init, samples.over_mesh(estimate_one, config, mesh))


def backprop(problem: InnerProblem, config: Sampling, mesh: Mesh) -> Estimator:
    """Full backpropagation: every estimate differentiates whole episodes, exactly.

        g = mean_i  grad_theta L(theta + e_i),   e_i ~ N(0, sigma^2)

    Also through the reset, where the first state depends on theta. All samples run for
    ``problem.longest`` steps; what lies beyond a sample's own horizon does not count.

    Memory: the states between windows and those of one window, so about sqrt(T) of
    them with windows of sqrt(T) steps; every step is run twice more in the reverse pass.

    Raises:
      UserError: if the episodes of ``problem`` have no bound.
    """
    if not problem.longest:
        raise UserError("full backpropagation needs to know the longest episode: set InnerProblem.longest")
    samples.refuse(config, "full backpropagation", "shaping")
    windows = window.build(problem, config.window, config.combine)
    num_windows = -(-problem.longest // config.window)

    def loss_of(theta: Theta, sample: Samples, outer_step):
        @jax.checkpoint
        def body(episode, _):
            active = episode.step < episode.horizon
            # Beyond its horizon an episode may lead anywhere; a finite stand-in keeps NaN out of the reverse pass.
            ended, ran = windows.run(theta, samples.where(active, episode, start))
            return samples.where(active, ended, episode), (jnp.where(active, ran.loss, 0.0), active * ran.capped)

        start = windows.reset(theta, samples.subkey(sample, "episode"), outer_step)
        episode, (losses, capped) = jax.lax.scan(body, start, length=num_windows)
        share = config.window / episode.step
        return jnp.sum(losses) * share, (episode, jnp.sum(capped) * share)

    def estimate_one(theta: Theta, sample: Samples, outer_step):
        sample = sample._replace(draw=sample.draw + 1)
        theta = perturbed(theta, sample, config.sigma)
        (loss, (episode, capped)), grad = jax.value_and_grad(loss_of, has_aux=True)(theta, sample, outer_step)
        return measure(grad, loss, samples.is_dead(episode), capped, episode.step, config.sample_clip), sample

    return Estimator(lambda theta, key: samples.init(config, key), samples.over_mesh(estimate_one, config, mesh))


def perturbed(theta: Theta, sample: Samples, sigma: float) -> Theta:
    """theta where gradients are taken: itself for sigma = 0, else smoothed over samples."""
    if not sigma:
        return theta
    return jax.tree.map(jnp.add, theta, samples.perturbation(theta, sample, sigma))


def measure(grad: Theta, loss, dead, capped, inner_steps, sample_clip: float) -> Measured:
    """What a differentiated sample contributes, its gradient not longer than ``sample_clip``."""
    norm = optax.tree.norm(grad)
    return Measured(
        grad=shorten(grad, sample_clip),
        valid=jnp.isfinite(norm) & jnp.isfinite(loss),
        dead=dead,
        capped=capped,
        inner_steps=inner_steps,
        metrics={"meta_loss": loss, "sample_norm": norm},
    )


def shorten(grad: Theta, sample_clip: float) -> Theta:
    """A gradient of norm ``sample_clip`` at most; 0 is no limit."""
    if not sample_clip:
        return grad
    factor = jnp.minimum(1.0, sample_clip / optax.tree.norm(grad))
    return jax.tree.map(lambda g: g * factor, grad)
