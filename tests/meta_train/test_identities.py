"""Estimators that must agree: limits and special cases of one another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_train.estimators import ESTIMATORS, samples
from meta_train.estimators.samples import Sampling
from meta_train.inner import episodes
from meta_train.inner.episodes import Episodes
from meta_train.parallel import devices
from metaopt import families
from metaopt.core import Episode, InnerProblem, Learner
from tasks.quadratic import Quadratic
from tests.meta_train.problems import run_windows

HORIZON, WINDOW = 12, 3


def descent(horizon: int = HORIZON, rounding: int = 1) -> InnerProblem:
    """Gradient descent on a quartic; theta is log rate and log of the start: nothing is linear.

    Horizons are random multiples of ``rounding`` up to ``horizon``.
    """
    scale = jnp.array([1.0, 0.3])
    loss = lambda x: jnp.sum(scale * x**2 + 0.1 * x**4)

    def reset(theta, key, outer_step):
        del outer_step
        length = rounding * jax.random.randint(key, (), 1, horizon // rounding + 1) if rounding < horizon else horizon
        return Episode(key, jnp.int32(0), jnp.int32(length), (), jnp.exp(theta[1]) * jnp.ones(2))

    def step(theta, episode):
        x = episode.inner - jnp.exp(theta[0]) * jax.grad(loss)(episode.inner)
        return episode._replace(step=episode.step + 1, inner=x), loss(x)

    learner = Learner(lambda e: e.inner, lambda e, x: loss(x), lambda e, x: x[None])
    return InnerProblem(reset, step, longest=horizon, final=lambda e: loss(e.inner), learner=learner)


START = jnp.array([-2.0, 0.3])
FIXED = descent(rounding=HORIZON)


def estimates(name, window=WINDOW, num_windows=None, sigma=0.1, problem=FIXED, theta=START, num_samples=4, **options):
    """(num_windows, P) estimates of consecutive windows; all samples in lockstep."""
    config = {k: options.pop(k) for k in ("combine", "shaping") if k in options}
    config = Sampling(num_samples, window, sigma, staggered=False, **config)
    num_windows = num_windows or HORIZON // window
    return np.asarray(run_windows(name, problem, config, num_windows, theta=theta, **options)[0])


def test_one_window_per_episode_makes_them_all_equal():
    results = [
        estimates(name, window=HORIZON, num_windows=3) for name in ("es", "es_single", "pes", "gpes", "truncated_es")
    ]
    for other in results[1:]:
        np.testing.assert_allclose(results[0], other, rtol=1e-5)


def test_gpes_is_pes_at_one_end_and_es_single_at_the_other():
    np.testing.assert_array_equal(estimates("gpes", windows_per_draw=1, num_windows=9), estimates("pes", num_windows=9))
    longest = estimates("gpes", windows_per_draw=HORIZON // WINDOW, num_windows=9)
    # The same draws, but another program: losses may round differently.
    np.testing.assert_allclose(longest, estimates("es_single", num_windows=9), rtol=1e-5)
    between = estimates("gpes", windows_per_draw=2, num_windows=9)
    assert not np.allclose(between[1:], longest[1:], rtol=0.1)


@pytest.mark.parametrize("combine", ["mean", "last", "min", "fresh"])
def test_es_single_over_an_episode_is_full_es(combine):
    whole = estimates("es", num_windows=1, combine=combine)[0]
    # Differences of two losses in float32, divided by 2 sigma.
    np.testing.assert_allclose(estimates("es_single", combine=combine).mean(axis=0), whole, rtol=1e-4, atol=1e-5)


def test_dodge_is_es_single_with_small_perturbations():
    finite = estimates("es_single", sigma=1e-3)
    # Third derivatives times sigma^2, and float32 losses of order one over 2e-3: 1e-3, spec 10.5.
    np.testing.assert_allclose(estimates("dodge"), finite, rtol=1e-3, atol=1e-3 * np.abs(finite).max())


@pytest.mark.parametrize("combine", ["mean", "last", "min", "fresh"])
def test_rtrl_over_an_episode_is_full_backpropagation(combine):
    whole = estimates("backprop", sigma=0.0, num_windows=1, combine=combine)[0]
    np.testing.assert_allclose(estimates("rtrl", sigma=0.0, combine=combine).mean(axis=0), whole, rtol=1e-5, atol=1e-7)
    # The start depends on theta, so truncation is seen.
    truncated = estimates("tbptt", sigma=0.0, combine=combine).mean(axis=0)
    assert np.abs(truncated - whole).max() > 0.1 * np.abs(whole).max()


def test_forward_and_reverse_agree_where_the_state_counts_steps():
    """Adam on a noisy quadratic: integers in the state have no derivative, random horizons."""
    optimizer = families.build("hand", rule="adam", learning_rate=0.05)
    problem = episodes.build(optimizer, Quadratic(dim=3, noise=0.1), Episodes(6, 6), window=3)
    theta = optimizer.init(jax.random.key(0))
    config = Sampling(num_samples=2, window=3, sigma=0.0, staggered=False)
    forward = run_windows("rtrl", problem, config, 2, theta=theta)[0]
    (reverse,) = jax.tree.leaves(run_windows("backprop", problem, config, 1, theta=theta)[0]["log_learning_rate"])
    np.testing.assert_allclose(forward["log_learning_rate"].mean(), reverse, rtol=1e-4)


def test_full_backpropagation_counts_no_step_beyond_the_horizon():
    """Horizons of 3 to 12 steps side by side, against jax.grad of each."""
    problem = descent(rounding=3)
    config = Sampling(num_samples=6, window=3, sigma=0.0)
    grads, metrics = run_windows("backprop", problem, config, 1, theta=START)

    def mean_loss(theta, key):
        episode = problem.reset(theta, key, 0)
        horizon, losses = int(episode.horizon), []
        for _ in range(horizon):
            episode, loss = problem.step(theta, episode)
            losses.append(loss)
        return sum(losses) / horizon

    states = samples.init(config, jax.random.key(0))._replace(draw=jnp.ones(6, jnp.int32))
    keys = [samples.subkey(jax.tree.map(lambda x, i=i: x[i], states), "episode") for i in range(6)]
    values, expected = zip(*[jax.value_and_grad(mean_loss)(START, key) for key in keys], strict=True)
    assert len({int(problem.reset(START, key, 0).horizon) for key in keys}) > 1
    np.testing.assert_allclose(grads[0], np.mean(expected, axis=0), rtol=1e-5)
    np.testing.assert_allclose(metrics["meta_loss"][0], np.mean(values), rtol=1e-5)


def test_full_backpropagation_survives_what_lies_beyond_the_horizon():
    """A schedule with the root of the steps that are left: no number, and no derivative, after the last."""

    def reset(theta, key, outer_step):
        del theta, outer_step
        return Episode(key, jnp.int32(0), 3 * jax.random.randint(key, (), 1, 5), (), jnp.ones(()))

    def step(theta, episode):
        left = jnp.sqrt((episode.horizon - episode.step) / 12)
        x = episode.inner * (1 - jnp.exp(theta[0]) * left)
        return episode._replace(step=episode.step + 1, inner=x), x**2

    problem = InnerProblem(reset, step, longest=12)
    grads, metrics = run_windows("backprop", problem, Sampling(8, 3, 0.0), 1, theta=START[:1])
    assert metrics["num_valid"][0] == 8 and np.isfinite(grads).all()


@pytest.mark.parametrize("rate", [0.05, 1.0])
def test_a_bootstrap_of_one_plain_step_is_the_ordinary_meta_gradient(rate):
    """mu = 1/2 |x - rate grad f(x) - x|^2 has gradient rate (dx/dtheta)' grad f, divided by rate here."""
    bootstrapped = estimates("bmg", sigma=0.0, ahead=0, target_rate=rate)

    def final_loss(theta, state):
        state, _ = jax.lax.scan(lambda e, _: FIXED.step(theta, e), state, length=WINDOW)
        return FIXED.final(state)

    episode = FIXED.reset(START, jax.random.key(0), 0)
    first = jax.grad(lambda theta: final_loss(theta, FIXED.reset(theta, jax.random.key(0), 0)))(START)
    np.testing.assert_allclose(bootstrapped[0], first, rtol=1e-4)
    assert abs(first[1]) > 0.01  # the start is theta's own
    for grad in bootstrapped[1:]:
        for _ in range(WINDOW):
            episode, _ = FIXED.step(START, episode)
        expected = jax.grad(final_loss)(START, episode)
        np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=1e-6)


def test_pes_with_an_analytic_window_is_exact_where_one_window_is_all():
    """Without a past there is nothing to sample: it is the gradient of the window."""
    analytic = estimates("pes_analytic", window=HORIZON, num_windows=2)
    whole = estimates("backprop", window=HORIZON, sigma=0.0, num_windows=2)
    np.testing.assert_allclose(analytic, whole, rtol=1e-5)


def test_without_pairs_and_with_mirrored_noise_vanilla_es_is_antithetic_es(monkeypatch):
    noise = 0.1 * jax.random.normal(jax.random.key(3), (3, 2))
    mirrored, results = jnp.concatenate([noise, -noise]), []
    for values, options in ((mirrored, {"antithetic": False}), (noise, {})):
        which = lambda theta, sample, sigma, values=values: values[jax.random.key_data(sample.key)[1]]
        monkeypatch.setattr(samples, "perturbation", which)
        number = jnp.arange(len(values), dtype=jnp.uint32)
        keys = jax.random.wrap_key_data(jnp.stack([jnp.zeros_like(number), number], axis=1))
        estimator = ESTIMATORS["es"](FIXED, Sampling(len(values), WINDOW, 0.1), devices.mesh(1), **options)
        state = estimator.init(START, jax.random.key(0))._replace(key=keys)
        results.append(jax.jit(estimator.estimate)(START, state, 0)[0])
    # (1 / N sigma^2) sum e L over six members is the mean over three pairs; losses of order one in float32.
    np.testing.assert_allclose(*results, rtol=1e-4)
