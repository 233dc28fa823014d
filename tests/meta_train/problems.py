"""Inner problems with known answers."""

import jax
import jax.numpy as jnp

from meta_train.estimators import ESTIMATORS
from meta_train.inner import toys
from meta_train.parallel import devices
from metaopt.core import InnerProblem

HESSIAN = jnp.array([[1.0, 0.3], [0.3, 0.5]])
INPUT = jnp.array([[1.0, -0.5], [0.2, 0.8]])
GOAL = jnp.array([1.0, -1.0])
RATE = 0.3
THETA = jnp.array([0.5, -0.3])


def linear_system(horizon: int) -> InnerProblem:
    """The meta-loss is quadratic in theta: unbiased estimators have the true gradient as mean."""
    return toys.quadratic(HESSIAN, INPUT, jnp.ones(2), GOAL, RATE, horizon)


def mean_loss(theta, horizon: int) -> jax.Array:
    """Mean loss of one episode, for ``jax.grad``."""
    problem = linear_system(horizon)
    episode = problem.reset(theta, jax.random.key(0), 0)
    _, losses = jax.lax.scan(lambda e, _: problem.step(theta, e), episode, length=horizon)
    return jnp.mean(losses)


def run_windows(name, problem, config, num_windows, num_devices=1, theta=THETA, **options):
    """Estimates of consecutive windows with theta fixed: (num_windows, ...) and metrics."""
    estimator = ESTIMATORS[name](problem, config, devices.mesh(num_devices), **options)

    @jax.jit
    def scan(state):
        def body(state, _):
            grad, state, metrics = estimator.estimate(theta, state, 0)
            return state, (grad, metrics)

        return jax.lax.scan(body, state, length=num_windows)[1]

    return scan(estimator.init(theta, jax.random.key(0)))
