"""The evolution-strategies family against cases with a known answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_train import devices
from meta_train.estimators import ESTIMATORS
from meta_train.estimators.samples import Config
from metaopt.core import Episode, InnerProblem
from tests.meta_train.problems import THETA, linear_system, mean_loss, run_windows

HORIZON = 12


@pytest.mark.parametrize("name, window", [("es", 3), ("es_single", 3), ("pes", 3), ("pes", 12)])
def test_mean_over_an_episode_is_the_true_gradient(name, window):
    num_windows = 1 if name == "es" else HORIZON // window
    config = Config(num_samples=20_000, window=window, sigma=0.1, staggered=False)
    grads, _ = run_windows(name, linear_system(HORIZON), config, num_windows)
    truth = jax.grad(mean_loss)(THETA, HORIZON)
    # Variance of one pair, spec 5: (P + 1) |g|^2 for a shared perturbation; PES differs by a
    # small factor here. Four standard errors of 20,000 pairs.
    tolerance = 4 * float(jnp.linalg.norm(truth)) * (3 / 20_000) ** 0.5 * 1.5
    np.testing.assert_allclose(jnp.mean(grads, axis=0), truth, atol=tolerance)


def test_truncation_bias_would_be_seen():
    """The test above can fail: forgetting the past changes the answer by far more."""
    config = Config(num_samples=20_000, window=3, sigma=0.1, staggered=False)
    grads, _ = run_windows("pes", linear_system(HORIZON), config, 1)
    truth = jax.grad(mean_loss)(THETA, HORIZON)
    assert np.abs(grads[0] - truth).max() > 0.3 * np.abs(truth).max()


def test_es_single_variance_does_not_depend_on_the_window():
    truth = jax.grad(mean_loss)(THETA, HORIZON)
    for window in (1, 4, 12):
        config = Config(num_samples=1, window=window, sigma=0.1, staggered=False)
        problem, num_windows = linear_system(HORIZON), HORIZON // window
        estimator = ESTIMATORS["es_single"](problem, config, devices.mesh(1))

        def episode(state, _, estimator=estimator, num_windows=num_windows):
            def body(state, _):
                grad, state, _ = estimator.estimate(THETA, state, 0)
                return state, grad

            state, grads = jax.lax.scan(body, state, length=num_windows)
            return state, jnp.mean(grads, axis=0)

        _, estimates = jax.lax.scan(episode, estimator.init(THETA, jax.random.key(0)), length=20_000)
        variance = jnp.sum(jnp.var(estimates, axis=0))
        # tr Var = (P + 1) |g|^2; heavy tails: 5 % at 20,000 samples, spec 10.4.
        np.testing.assert_allclose(variance, 3 * jnp.sum(truth**2), rtol=0.05)


@pytest.mark.parametrize("name", ["es", "es_single", "pes"])
def test_an_even_loss_has_no_gradient_at_its_centre(name):
    even = InnerProblem(
        reset=lambda theta, key, outer_step: Episode(key, jnp.int32(0), jnp.int32(4), (), jnp.zeros(())),
        step=lambda theta, e: (e._replace(step=e.step + 1), jnp.sum(theta**2)),
    )
    grads, _ = run_windows(name, even, Config(num_samples=4, window=2), 3, theta=jnp.zeros(5))
    np.testing.assert_array_equal(grads, np.zeros((3, 5)))
