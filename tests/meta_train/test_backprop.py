"""Truncated backpropagation against gradients taken by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from meta_train.estimators import ESTIMATORS
from meta_train.estimators.samples import Sampling
from meta_train.parallel import devices
from tests.meta_train.problems import THETA, linear_system, mean_loss, run_windows

HORIZON, WINDOW = 12, 3


def window_loss(theta, state, window):
    _, losses = jax.lax.scan(lambda e, _: linear_system(HORIZON).step(theta, e), state, length=window)
    return jnp.mean(losses)


def test_a_window_as_long_as_the_episode_gives_the_true_gradient():
    grads, metrics = run_windows("tbptt", linear_system(HORIZON), Sampling(2, HORIZON, sigma=0.0, staggered=False), 2)
    truth = jax.grad(mean_loss)(THETA, HORIZON)
    np.testing.assert_allclose(grads, [truth, truth], rtol=1e-5)  # float32 through twelve steps
    np.testing.assert_allclose(metrics["meta_loss"], mean_loss(THETA, HORIZON), rtol=1e-6)


def test_a_window_is_differentiated_with_its_start_held_constant():
    problem = linear_system(HORIZON)
    grads, _ = run_windows("tbptt", problem, Sampling(1, WINDOW, sigma=0.0, staggered=False), HORIZON // WINDOW)
    episode = problem.reset(THETA, jax.random.key(0), 0)
    for grad in grads:
        np.testing.assert_allclose(grad, jax.grad(window_loss)(THETA, episode, WINDOW), rtol=1e-5, atol=1e-7)
        for _ in range(WINDOW):
            episode, _ = problem.step(THETA, episode)


def test_smoothing_averages_over_perturbed_theta():
    """The meta-loss is quadratic: the mean gradient is that at theta, the spread sigma |H e|."""
    config = Sampling(20_000, HORIZON, sigma=0.1, staggered=False)
    grads, _ = run_windows("tbptt", linear_system(HORIZON), config, 1)
    hessian = jax.hessian(mean_loss)(THETA, HORIZON)
    error = 4 * 0.1 * float(jnp.linalg.norm(hessian)) / 20_000**0.5  # four standard errors
    np.testing.assert_allclose(grads[0], jax.grad(mean_loss)(THETA, HORIZON), atol=error)
    one, _ = run_windows("tbptt", linear_system(HORIZON), Sampling(1, HORIZON, sigma=0.1, staggered=False), 1)
    assert np.abs(one[0] - grads[0]).max() > error


def test_a_gradient_that_is_too_long_is_shortened():
    config = Sampling(1, HORIZON, sigma=0.0, staggered=False, sample_clip=0.01)
    grads, metrics = run_windows("tbptt", linear_system(HORIZON), config, 1)
    truth = jax.grad(mean_loss)(THETA, HORIZON)
    np.testing.assert_allclose(grads[0], 0.01 * truth / jnp.linalg.norm(truth), rtol=1e-5)
    np.testing.assert_allclose(metrics["sample_norm"][0], jnp.linalg.norm(truth), rtol=1e-5)


def test_it_learns_what_evolution_strategies_learn():
    """Full-length windows on the linear system: gradient descent finds the least-squares theta."""
    problem = linear_system(HORIZON)
    estimator = ESTIMATORS["tbptt"](problem, Sampling(1, HORIZON, sigma=0.0, staggered=False), devices.mesh(1))
    curvature = jax.hessian(mean_loss)(THETA, HORIZON)
    best = THETA - jnp.linalg.solve(curvature, jax.grad(mean_loss)(THETA, HORIZON))

    @jax.jit
    def descend(theta, state):
        def body(carry, _):
            theta, state = carry
            grad, state, _ = estimator.estimate(theta, state, 0)
            return (theta - 0.5 * grad, state), None

        return jax.lax.scan(body, (theta, state), length=300)[0][0]

    theta = descend(THETA, estimator.init(THETA, jax.random.key(0)))
    slowest = (1 - 0.5 * jnp.linalg.eigvalsh(curvature)[0]) ** 300
    np.testing.assert_allclose(theta, best, atol=1e-5 + 2 * float(slowest))
