"""The evolution-strategies family against cases with a known answer."""

import functools
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_train.estimators import ESTIMATORS, samples
from meta_train.estimators.samples import Sampling
from meta_train.parallel import devices
from metaopt.core import Episode, InnerProblem
from tests import golden
from tests.golden import estimators as replay
from tests.meta_train.problems import THETA, linear_system, run_windows

HORIZON = 12


GOLDEN = np.load(Path(golden.__file__).parent / "est_quadlin.npz")
NUM_PAIRS = 200_000


@functools.cache
def episode_estimates(name, window, num_pairs, **options):
    """(windows, num_pairs, P) estimates of single pairs on est_quadlin, summed losses, theta fixed."""
    problem, _ = replay.quadlin(GOLDEN)
    problem = problem._replace(reset=lambda *a, reset=problem.reset: reset(*a)._replace(horizon=jnp.int32(20)))
    config = Sampling(num_pairs, window, float(GOLDEN["sigma"]), staggered=False)
    singles = lambda estimate_one, config, mesh, shape: one_by_one(estimate_one, shape)
    with mock.patch.object(samples, "over_mesh", singles):
        estimator = ESTIMATORS[name](problem, config, None, **options)
    theta = jnp.asarray(GOLDEN["theta0"])

    @jax.jit
    def run(state):
        return jax.lax.scan(lambda s, _: estimator.estimate(theta, s, 0)[::-1], state, length=20 // window)[1]

    return window * np.asarray(run(estimator.init(theta, jax.random.key(0))), np.float64)


def one_by_one(estimate_one, shape):
    """In place of the mean over samples: the estimate of every sample."""

    def estimate(theta, state, outer_step):
        measured, state = jax.vmap(estimate_one, (None, 0, None))(theta, state, outer_step)
        return measured.grad * shape(measured.losses, measured.valid)[:, None], state

    return estimate


@pytest.mark.parametrize("name", ["es_single", "pes", "gpes", "es_gen", "truncated_es"])
def test_the_sum_over_an_episode_has_the_right_mean(name):
    """Spec 10.3: within four standard errors of the true gradient; truncated ES of the truncated one."""
    totals = episode_estimates(name, 5, NUM_PAIRS).sum(axis=0)
    mean, error = totals.mean(axis=0), totals.std(axis=0) / NUM_PAIRS**0.5
    truth, truncated = GOLDEN["true_grad"].sum(axis=0), GOLDEN["trunc_grad"].sum(axis=0)
    target, other = (truncated, truth) if name == "truncated_es" else (truth, truncated)
    assert (np.abs(mean - target) < 4 * error).all()
    assert (np.abs(mean - other) > 20 * error).all()


@pytest.mark.parametrize("name, stored", [("es_single", "var_es_single_pair"), ("pes", "var_pes_pair")])
def test_the_variance_is_that_of_the_closed_form(name, stored):
    totals = episode_estimates(name, 5, NUM_PAIRS).sum(axis=0)
    # Heavy tails: 5 %, spec 10.4.
    np.testing.assert_allclose(np.sum(totals.var(axis=0)), GOLDEN[stored], rtol=0.05)


@pytest.mark.parametrize("window", [1, 2, 10, 20])
def test_es_single_variance_does_not_depend_on_the_window(window):
    totals = episode_estimates("es_single", window, NUM_PAIRS).sum(axis=0)
    np.testing.assert_allclose(np.sum(totals.var(axis=0)), GOLDEN["var_es_single_pair"], rtol=0.05)


def test_the_first_member_can_lead():
    """advance="pos": the second window starts where the first member of the first one ended."""
    problem = linear_system(HORIZON)
    config = Sampling(num_samples=1, window=3, sigma=0.1, staggered=False)
    estimator = ESTIMATORS["truncated_es"](problem, config, devices.mesh(1), advance="pos")
    state = estimator.init(THETA, jax.random.key(0))
    _, state, _ = jax.jit(estimator.estimate)(THETA, state, 0)
    eps = samples.perturbation(THETA, jax.tree.map(lambda x: x[0], state), 0.1)
    episode = problem.reset(THETA, jax.random.key(0), 0)
    for _ in range(3):
        episode, _ = problem.step(THETA + eps, episode)
    np.testing.assert_allclose(state.episode.inner[0], [episode.inner, episode.inner], rtol=1e-6)


@pytest.mark.parametrize("name", ["es", "es_single", "pes"])
def test_an_even_loss_has_no_gradient_at_its_center(name):
    even = InnerProblem(
        reset=lambda theta, key, outer_step: Episode(key, jnp.int32(0), jnp.int32(4), (), jnp.zeros(())),
        step=lambda theta, e: (e._replace(step=e.step + 1), jnp.sum(theta**2)),
    )
    grads, _ = run_windows(name, even, Sampling(num_samples=4, window=2), 3, theta=jnp.zeros(5))
    np.testing.assert_array_equal(grads, np.zeros((3, 5)))
