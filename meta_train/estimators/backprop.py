"""Truncated backpropagation through time."""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from meta_train.estimators import samples
from meta_train.estimators.samples import Config, Measured, Samples
from metaopt.core import Episode, Estimator, InnerProblem, Theta


def tbptt(problem: InnerProblem, config: Config, mesh: Mesh) -> Estimator:
    """The exact gradient of the mean loss of one window, with its start held constant.

        g = mean_i  grad_theta L(theta + e_i; s_i),   e_i ~ N(0, sigma^2), one for an episode

    It is the gradient of the loss that evolution strategies smooth with the same
    ``sigma``, without their noise: one sample is worth about as many pairs as theta
    has entries. It is biased, for it does not see what a window does to later ones;
    where training is chaotic single gradients explode, and ``sample_clip`` limits
    them. ``sigma=0`` is the classical method.

    Memory: the inner states of a window; a step is run once more in the reverse pass.

    Sources: Werbos, 1990; smoothed, Metz et al., arXiv:1810.10180.
    """

    def mean_loss(theta: Theta, episode: Episode):
        def body(episode, _):
            episode, loss = problem.step(theta, episode)
            return episode, samples.cap(loss, problem.worst)

        episode, (losses, capped) = jax.lax.scan(jax.checkpoint(body), episode, length=config.window)
        return jnp.mean(losses), (episode, jnp.mean(capped))

    def estimate_one(theta: Theta, sample: Samples):
        sample = sample._replace(draw=sample.draw + sample.done)
        theta = jax.tree.map(jnp.add, theta, samples.perturbation(theta, sample, config.sigma))
        fresh = problem.reset(theta, samples.subkey(sample, "episode"))
        episode = samples.current(sample, fresh, config)
        (loss, (episode, capped)), grad = jax.value_and_grad(mean_loss, has_aux=True)(theta, episode)
        norm = optax.tree.norm(grad)
        if config.sample_clip:
            grad = jax.tree.map(lambda g: g * jnp.minimum(1.0, config.sample_clip / norm), grad)
        measured = Measured(
            grad=grad,
            valid=jnp.isfinite(norm) & jnp.isfinite(loss),
            dead=samples.is_dead(episode),
            capped=capped,
            inner_steps=config.window,
            metrics={"meta_loss": loss, "sample_norm": norm},
        )
        done = (episode.step >= episode.horizon) | measured.dead
        return measured, sample._replace(done=done, episode=episode)

    def init(theta, key):
        start = lambda sample: problem.reset(theta, samples.subkey(sample, "episode"))
        return samples.init(config, key, start)

    return Estimator(init, samples.spread(estimate_one, config, mesh))
