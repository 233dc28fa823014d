"""The evolution-strategies family against cases with a known answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_train import devices
from meta_train.estimators import ESTIMATORS, es
from metaopt.core import Episode, InnerProblem
from metaopt.errors import UserError
from tests.meta_train.problems import linear_system, mean_loss

THETA = jnp.array([0.5, -0.3])
HORIZON = 12


def run(name, problem, config, num_windows, num_devices=1, theta=THETA):
    """Estimates of consecutive windows with theta fixed: (num_windows, ...) and metrics."""
    estimator = ESTIMATORS[name](problem, config, devices.mesh(num_devices))

    @jax.jit
    def scan(state):
        def body(state, _):
            grad, state, metrics = estimator.estimate(theta, state, jax.random.key(9))
            return state, (grad, metrics)

        return jax.lax.scan(body, state, length=num_windows)[1]

    return scan(estimator.init(theta, jax.random.key(0)))


@pytest.mark.parametrize("name, window", [("es", 3), ("es_single", 3), ("pes", 3), ("pes", 12)])
def test_mean_over_an_episode_is_the_true_gradient(name, window):
    num_windows = 1 if name == "es" else HORIZON // window
    config = es.Config(num_pairs=20_000, window=window, sigma=0.1, staggered=False)
    grads, _ = run(name, linear_system(HORIZON), config, num_windows)
    truth = jax.grad(mean_loss)(THETA, HORIZON)
    # Variance of one pair, spec 5: (P + 1) |g|^2 for a shared perturbation; PES differs by a
    # small factor here. Four standard errors of 20,000 pairs.
    tolerance = 4 * float(jnp.linalg.norm(truth)) * (3 / 20_000) ** 0.5 * 1.5
    np.testing.assert_allclose(jnp.mean(grads, axis=0), truth, atol=tolerance)


def test_truncation_bias_would_be_seen():
    """The test above can fail: forgetting the past changes the answer by far more."""
    config = es.Config(num_pairs=20_000, window=3, sigma=0.1, staggered=False)
    grads, _ = run("pes", linear_system(HORIZON), config, 1)
    truth = jax.grad(mean_loss)(THETA, HORIZON)
    assert np.abs(grads[0] - truth).max() > 0.3 * np.abs(truth).max()


def test_es_single_variance_does_not_depend_on_the_window():
    truth = jax.grad(mean_loss)(THETA, HORIZON)
    for window in (1, 4, 12):
        config = es.Config(num_pairs=1, window=window, sigma=0.1, staggered=False)
        problem, num_windows = linear_system(HORIZON), HORIZON // window
        estimator = ESTIMATORS["es_single"](problem, config, devices.mesh(1))

        def episode(state, _, estimator=estimator, num_windows=num_windows):
            def body(state, _):
                grad, state, _ = estimator.estimate(THETA, state, None)
                return state, grad

            state, grads = jax.lax.scan(body, state, length=num_windows)
            return state, jnp.mean(grads, axis=0)

        _, estimates = jax.lax.scan(episode, estimator.init(THETA, jax.random.key(0)), length=20_000)
        variance = jnp.sum(jnp.var(estimates, axis=0))
        # tr Var = (P + 1) |g|^2; heavy tails: 5 % at 20,000 samples, spec 10.4.
        np.testing.assert_allclose(variance, 3 * jnp.sum(truth**2), rtol=0.05)


def test_one_window_per_episode_makes_them_all_equal():
    config = es.Config(num_pairs=4, window=HORIZON, sigma=0.1, staggered=False)
    results = [run(name, linear_system(HORIZON), config, 3)[0] for name in ("es", "es_single", "pes")]
    for other in results[1:]:
        np.testing.assert_allclose(results[0], other, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_an_even_loss_has_no_gradient_at_its_centre(name):
    even = InnerProblem(
        reset=lambda theta, key: Episode(key, jnp.int32(0), jnp.int32(4), (), jnp.zeros(())),
        step=lambda theta, e: (e._replace(step=e.step + 1), jnp.sum(theta**2)),
    )
    grads, _ = run(name, even, es.Config(num_pairs=4, window=2), 3, theta=jnp.zeros(5))
    np.testing.assert_array_equal(grads, np.zeros((3, 5)))


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_eight_devices_give_what_one_gives(name):
    config = es.Config(num_pairs=16, window=3, sigma=0.1)
    one, _ = run(name, linear_system(HORIZON), config, 6, num_devices=1)
    eight, _ = run(name, linear_system(HORIZON), config, 6, num_devices=8)
    np.testing.assert_allclose(one, eight, rtol=1e-5, atol=1e-6)  # another order of summation


def test_pairs_must_divide_over_the_devices():
    with pytest.raises(UserError, match="multiple of the 8 devices, got 12"):
        ESTIMATORS["pes"](linear_system(4), es.Config(num_pairs=12), devices.mesh(8))


def sabotaged(horizon, worst=float("inf"), inner_too=False):
    """The linear system, but episodes whose key is odd have a loss that is not finite."""
    base = linear_system(horizon)
    is_bad = lambda key: jax.random.bits(key) % 2 == 1

    def step(theta, episode):
        episode, loss = base.step(theta, episode)
        bad = is_bad(episode.key)
        inner = jnp.where(bad & inner_too, jnp.nan, episode.inner)
        return episode._replace(inner=inner), jnp.where(bad, jnp.nan, loss)

    return InnerProblem(base.reset, step, worst), is_bad


def test_a_pair_that_is_not_finite_leaves_the_others_alone():
    problem, _ = sabotaged(4)
    config = es.Config(num_pairs=8, window=4, sigma=0.1)
    grads, metrics = run("es", problem, config, 1)
    good = metrics["num_valid"][0]
    assert 0 < good < 8
    estimator = ESTIMATORS["es"](linear_system(4), config, devices.mesh(1))
    keys = estimator.init(THETA, jax.random.key(0)).key
    sub = jax.vmap(lambda k: jax.random.fold_in(jax.random.fold_in(k, 1), 1))(keys)
    kept = keys[jax.vmap(jax.random.bits)(sub) % 2 == 0]
    single = ESTIMATORS["es"](linear_system(4), es.Config(1, 4, 0.1), devices.mesh(1))
    state = single.init(THETA, jax.random.key(0))
    estimate = jax.jit(lambda k: single.estimate(THETA, state._replace(key=k[None]), None)[0])
    alone = [estimate(k) for k in kept]
    assert len(alone) == good
    np.testing.assert_allclose(grads[0], np.mean(alone, axis=0), rtol=1e-5)


def test_a_loss_beyond_the_worst_counts_as_the_worst():
    problem, _ = sabotaged(4, worst=7.0)
    grads, metrics = run("es_single", problem, es.Config(num_pairs=8, window=4, sigma=0.1), 1)
    assert metrics["num_valid"][0] == 8 and 0 < metrics["frac_capped"][0] < 1
    assert np.isfinite(grads).all()


def test_a_dead_pair_starts_a_new_episode():
    problem, _ = sabotaged(1000, worst=7.0, inner_too=True)
    _, metrics = run("pes", problem, es.Config(num_pairs=8, window=4, sigma=0.1, staggered=False), 12)
    # Every reset draws a key that is good with chance one half, and good episodes last.
    assert metrics["frac_dead"][0] > 0 and metrics["frac_dead"][-1] < metrics["frac_dead"][0]


def test_staggered_pairs_do_not_end_together():
    config = es.Config(num_pairs=32, window=2, sigma=0.1)
    estimator = ESTIMATORS["pes"](linear_system(20), config, devices.mesh(1))
    state = estimator.init(THETA, jax.random.key(0))
    _, state, _ = jax.jit(estimator.estimate)(THETA, state, jax.random.key(0))
    horizons = np.asarray(state.episode.horizon)
    assert set(horizons) <= set(range(2, 21, 2)) and len(set(horizons)) > 4


@pytest.mark.parametrize("bad", [{"num_pairs": 0}, {"window": 0}, {"sigma": 0.0}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(UserError, match="at least 1 and sigma positive"):
        es.Config(**bad)
