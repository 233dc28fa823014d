"""Reverse mode: backpropagation through a window or through whole episodes."""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from meta_train.estimators import samples, window
from meta_train.estimators.samples import Measured, Samples, Sampling
from meta_train.estimators.window import WindowResult
from metaopt.core import Episode, Estimator, InnerProblem, Key, Theta
from metaopt.errors import UserError


def tbptt(problem: InnerProblem, config: Sampling, mesh: Mesh) -> Estimator:
    """Truncated backpropagation through time: one window, whose first state is held constant.

        g = mean_i  grad_theta L(theta + e_i; s_i),   e_i ~ N(0, sigma^2), one for an episode

    This is the gradient of the loss that evolution strategies smooth with the same
    ``sigma``, without their noise: one sample is worth about as many pairs as theta
    has entries. It is biased, because it ignores the effect of a window on later ones.
    Where inner training is chaotic, single gradients explode; ``sample_clip`` limits
    them. ``sigma=0`` is the classical method.

    Memory: the inner states of a window; the reverse pass recomputes every step once.

    Sources: Werbos, 1990; smoothed, Metz et al., arXiv:1810.10180.
    """
    samples.refuse(config, "truncated backpropagation", "shaping")
    windows = window.build(problem, config.window, config.combine)

    def loss_of(theta: Theta, sample: Samples, outer_step: jax.Array) -> tuple[jax.Array, tuple[Episode, WindowResult]]:
        # The first state of a new episode may depend on theta; only states of earlier windows are constants.
        fresh = windows.reset(theta, samples.subkey(sample, "episode"), outer_step)
        episode = samples.begin(sample, fresh, config)
        ended, result = windows.run(theta, episode)
        return result.loss, (ended, result)

    def estimate_one(theta: Theta, sample: Samples, outer_step: jax.Array) -> tuple[Measured, Samples]:
        sample = sample._replace(draw=sample.draw + sample.done)
        theta = perturbed(theta, sample, config.sigma)
        (loss, (ended, result)), grad = jax.value_and_grad(loss_of, has_aux=True)(theta, sample, outer_step)
        measured = measure(grad, loss, samples.is_dead(ended), result.capped, config.window, config.sample_clip)
        return measured, samples.finish(sample, ended, measured.dead)

    def init(theta: Theta, key: Key) -> Samples:
        return samples.init(config, key, lambda sample: windows.reset(theta, samples.subkey(sample, "episode"), 0))

    return Estimator(init, samples.over_mesh(estimate_one, config, mesh))


def backprop(problem: InnerProblem, config: Sampling, mesh: Mesh) -> Estimator:
    """Full backpropagation: every estimate is the exact gradient of whole episodes.

        g = mean_i  grad_theta L(theta + e_i),   e_i ~ N(0, sigma^2)

    It includes the reset, where the first state depends on theta. All samples run for
    ``problem.longest`` steps; losses beyond the horizon of a sample are ignored.

    Memory: the states between windows and those of one window, so about sqrt(T) of
    them with windows of sqrt(T) steps; the reverse pass recomputes every step twice.

    Raises:
      UserError: if the episodes of ``problem`` have no bound.
    """
    if not problem.longest:
        raise UserError("full backpropagation needs to know the longest episode: set InnerProblem.longest")
    samples.refuse(config, "full backpropagation", "shaping")
    windows = window.build(problem, config.window, config.combine)
    num_windows = -(-problem.longest // config.window)

    def loss_of(theta: Theta, sample: Samples, outer_step: jax.Array) -> tuple[jax.Array, tuple[Episode, jax.Array]]:
        @jax.checkpoint
        def one_window(episode: Episode, _: None) -> tuple[Episode, tuple[jax.Array, jax.Array]]:
            active = episode.step < episode.horizon
            # Beyond its horizon an episode may diverge; the first state in its place keeps NaN out of the reverse pass.
            ended, result = windows.run(theta, samples.where(active, episode, start))
            return samples.where(active, ended, episode), (jnp.where(active, result.loss, 0.0), active * result.capped)

        start = windows.reset(theta, samples.subkey(sample, "episode"), outer_step)
        episode, (losses, capped) = jax.lax.scan(one_window, start, length=num_windows)
        weight = config.window / episode.step  # 1 / number of windows of the episode
        return jnp.sum(losses) * weight, (episode, jnp.sum(capped) * weight)

    def estimate_one(theta: Theta, sample: Samples, outer_step: jax.Array) -> tuple[Measured, Samples]:
        sample = sample._replace(draw=sample.draw + 1)
        theta = perturbed(theta, sample, config.sigma)
        (loss, (episode, capped)), grad = jax.value_and_grad(loss_of, has_aux=True)(theta, sample, outer_step)
        return measure(grad, loss, samples.is_dead(episode), capped, episode.step, config.sample_clip), sample

    def init(theta: Theta, key: Key) -> Samples:
        del theta  # no episode is kept between estimates
        return samples.init(config, key)

    return Estimator(init, samples.over_mesh(estimate_one, config, mesh))


def perturbed(theta: Theta, sample: Samples, sigma: float) -> Theta:
    """theta + e, where the gradient of a sample is taken; theta itself for sigma = 0."""
    if not sigma:
        return theta
    return jax.tree.map(jnp.add, theta, samples.perturbation(theta, sample, sigma))


def measure(
    grad: Theta, loss: jax.Array, dead: jax.Array, capped: jax.Array, inner_steps: jax.Array | int, sample_clip: float
) -> Measured:
    """The contribution of a differentiated sample, with its gradient clipped to norm ``sample_clip``."""
    norm = optax.tree.norm(grad)
    return Measured(
        grad=clipped(grad, sample_clip),
        valid=jnp.isfinite(norm) & jnp.isfinite(loss),
        dead=dead,
        capped=capped,
        inner_steps=inner_steps,
        metrics={"meta_loss": loss, "sample_norm": norm},
    )


def clipped(grad: Theta, sample_clip: float) -> Theta:
    """The gradient scaled down to norm ``sample_clip`` where it is longer; 0 means no limit."""
    if not sample_clip:
        return grad
    factor = jnp.minimum(1.0, sample_clip / optax.tree.norm(grad))
    return jax.tree.map(lambda g: g * factor, grad)
