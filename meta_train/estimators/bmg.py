"""Bootstrapped meta-gradients: the target of a learner is where further steps would take it."""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from meta_train.estimators import backprop, samples, window
from meta_train.estimators.samples import Measured, Samples, Sampling
from meta_train.estimators.window import WindowResult
from metaopt.core import Episode, Estimator, InnerProblem, Key, Learner, Params, Theta
from metaopt.errors import UserError, unknown


def bmg(
    problem: InnerProblem,
    config: Sampling,
    mesh: Mesh,
    ahead: int = 0,
    target_rate: float = 0.1,
    matching: str = "parameters",
) -> Estimator:
    """Bootstrapped meta-gradients: the gradient of the distance to a target further along in training.

    With x(theta) the parameters after a window, y the parameters ``ahead`` further steps of
    the optimizer later, and f the inner objective,

        target = y - target_rate * grad f(y)          held constant
        g = mean_i  grad_theta mu(target, x(theta)) / target_rate

        mu     parameters   1/2 |target - x|^2
               kl           mean over a batch of KL(outputs at target || outputs at x)

    ``ahead`` lengthens the horizon at the cost of forward steps, without storing their states.
    With ahead = 0 and matching parameters, g is the gradient of f after the window. The
    episode continues from x. The losses of the steps are reported, but not differentiated.

    Args:
      problem: inner problem with a ``learner``.
      config: settings that all estimators share.
      mesh: devices that the samples are sharded over.
      ahead: steps of the optimizer before the gradient step of the target.
      target_rate: learning rate of the gradient step of the target.
      matching: distance to the target, "parameters" or "kl".

    Raises:
      UserError: if ``problem`` has no learner, or its learner no outputs for "kl".

    Source: Flennerhag et al., arXiv:2109.04504.
    """
    learner = problem.learner
    if learner is None:
        raise UserError("bmg needs an inner problem that names its parameters: set InnerProblem.learner")
    if matching not in MATCHINGS:
        raise unknown("matching", matching, MATCHINGS)
    if matching == "kl" and learner.outputs is None:
        raise UserError("matching=kl compares outputs, and this inner problem has none; take matching=parameters")
    if ahead < 0 or target_rate <= 0:
        raise UserError(f"bmg needs ahead >= 0 and target_rate > 0, got {ahead} and {target_rate}")
    samples.refuse(config, "bmg", "shaping", "combine")
    distance = MATCHINGS[matching]
    windows = window.build(problem, config.window)

    def target_of(theta: Theta, episode: Episode) -> tuple[Episode, Params]:
        """The target, and the episode after ``ahead`` steps, which determines the batch of the target."""

        def step(episode: Episode, _: None) -> tuple[Episode, None]:
            return problem.step(theta, episode)[0], None

        if ahead:
            episode, _ = jax.lax.scan(step, episode, length=ahead)
        params = learner.params(episode)
        grads = jax.grad(learner.loss, argnums=1)(episode, params)
        return episode, jax.tree.map(lambda p, g: p - target_rate * g, params, grads)

    def loss_of(theta: Theta, sample: Samples, outer_step: jax.Array) -> tuple[jax.Array, tuple[Episode, WindowResult]]:
        fresh = windows.reset(theta, samples.subkey(sample, "episode"), outer_step)
        episode = samples.begin(sample, fresh, config)
        ended, result = windows.run(theta, episode)
        last, target = jax.lax.stop_gradient(target_of(jax.lax.stop_gradient(theta), jax.lax.stop_gradient(ended)))
        return distance(learner, last, target, learner.params(ended)) / target_rate, (ended, result)

    def estimate_one(theta: Theta, sample: Samples, outer_step: jax.Array) -> tuple[Measured, Samples]:
        sample = sample._replace(draw=sample.draw + sample.done)
        theta = backprop.perturbed(theta, sample, config.sigma)
        (loss, (ended, result)), grad = jax.value_and_grad(loss_of, has_aux=True)(theta, sample, outer_step)
        dead = samples.is_dead(ended)
        measured = backprop.measure(grad, result.loss, dead, result.capped, config.window + ahead, config.sample_clip)
        measured = measured._replace(metrics=measured.metrics | {"matching": loss})
        return measured, samples.finish(sample, ended, dead)

    def init(theta: Theta, key: Key) -> Samples:
        return samples.init(config, key, lambda sample: windows.reset(theta, samples.subkey(sample, "episode"), 0))

    return Estimator(init, samples.over_mesh(estimate_one, config, mesh))


def _parameters(learner: Learner, episode: Episode, target: Params, params: Params) -> jax.Array:
    del learner, episode
    return 0.5 * optax.tree.norm(jax.tree.map(jnp.subtract, target, params), squared=True)


def _kl(learner: Learner, episode: Episode, target: Params, params: Params) -> jax.Array:
    assert learner.outputs is not None  # bmg refuses other learners
    log_p, log_target = (jax.nn.log_softmax(learner.outputs(episode, p)) for p in (params, target))
    return jnp.mean(jnp.sum(jnp.exp(log_target) * (log_target - log_p), axis=-1))


MATCHINGS = {"parameters": _parameters, "kl": _kl}
