"""What every estimator promises, whatever its mathematics."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from meta_train.estimators import ESTIMATORS, samples
from meta_train.estimators.samples import Sampling
from meta_train.parallel import devices
from metaopt.core import Episode, InnerProblem
from metaopt.errors import UserError
from tests.meta_train.problems import THETA, linear_system, run_windows

HORIZON = 12
WHOLE = {"es", "backprop"}  # an estimate is an episode
ONLINE = sorted(set(ESTIMATORS) - WHOLE)  # those that keep episodes from window to window
# Inner steps of a sample for each step of an episode: members, or directions of a derivative and the value.
MEMBERS = {"backprop": 1, "bmg": 1, "tbptt": 1, "rtrl": 1 + THETA.size, "pes_analytic": 3, "truncated_es": 3}


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_eight_devices_give_what_one_gives(name):
    config = Sampling(num_samples=16, window=3, sigma=0.1)
    one, _ = run_windows(name, linear_system(HORIZON), config, 6, num_devices=1)
    eight, _ = run_windows(name, linear_system(HORIZON), config, 6, num_devices=8)
    np.testing.assert_allclose(one, eight, rtol=1e-5, atol=1e-6)  # another order of summation


@pytest.mark.parametrize("name, shaping, gathers", [("pes", "none", 0), ("tbptt", "none", 0), ("es_single", "rank", 1)])
def test_devices_talk_once_an_estimate(name, shaping, gathers):
    """One all-reduce of gradient and metrics; ranks exchange the losses before it."""
    config = Sampling(num_samples=8, window=3, sigma=0.1, shaping=shaping)
    estimator = ESTIMATORS[name](linear_system(HORIZON), config, devices.mesh(8))
    state = estimator.init(THETA, jax.random.key(0))
    program = jax.jit(estimator.estimate).lower(THETA, state, 0).compile().as_text()
    assert program.count(" all-reduce(") == 1
    assert program.count(" all-gather(") == gathers


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_a_few_samples_at_once_give_what_all_at_once_give(name):
    config = Sampling(num_samples=8, window=3, sigma=0.1)
    whole, _ = run_windows(name, linear_system(HORIZON), config, 6)
    # Three do not divide eight: two are left for the end.
    by_three, _ = run_windows(name, linear_system(HORIZON), dataclasses.replace(config, at_once=3), 6)
    np.testing.assert_allclose(whole, by_three, rtol=1e-5, atol=1e-6)  # another order of summation


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_inner_steps_are_counted(name):
    config = Sampling(num_samples=8, window=3, sigma=0.1)
    _, metrics = run_windows(name, linear_system(HORIZON), config, 2)
    per_sample = MEMBERS.get(name, 2) * (HORIZON if name in WHOLE else 3)
    np.testing.assert_array_equal(metrics["inner_steps"], [8 * per_sample] * 2)


def test_samples_must_divide_over_the_devices():
    with pytest.raises(UserError, match="multiple of the 8 devices, got 12"):
        ESTIMATORS["pes"](linear_system(4), Sampling(num_samples=12), devices.mesh(8))


class Pair(NamedTuple):
    first: jax.Array
    second: jax.Array


TREES = {
    "array": jnp.array([0.5, -0.3]),
    "scalar": jnp.array(0.5),
    "containers": (jnp.array([0.5]), [Pair(jnp.array(-0.3), jnp.zeros((0, 2)))]),
}


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_theta_may_be_any_tree(name, monkeypatch):
    """Tuples, lists and NamedTuples around the entries of an array, with the noise of that array."""
    theta, problem = TREES["containers"], linear_system(HORIZON)
    flat, unravel = ravel_pytree(theta)
    config = Sampling(num_samples=4, window=3, sigma=0.1)
    expected, _ = run_windows(name, problem, config, 6, theta=flat)

    def reset(theta, key, outer_step):
        return problem.reset(ravel_pytree(theta)[0], key, outer_step)

    def step(theta, episode):
        return problem.step(ravel_pytree(theta)[0], episode)

    of_array = samples.perturbation
    monkeypatch.setattr(samples, "perturbation", lambda theta, *about: unravel(of_array(flat, *about)))
    grads, _ = run_windows(name, problem._replace(reset=reset, step=step), config, 6, theta=theta)
    assert jax.tree.structure(grads) == jax.tree.structure(theta)
    # Another program: differences of losses of order one, divided by sigma, may round differently.
    np.testing.assert_allclose(jax.vmap(lambda g: ravel_pytree(g)[0])(grads), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tree", sorted(TREES))
@pytest.mark.parametrize("name", sorted(set(ESTIMATORS) - {"bmg"}))
def test_an_inner_problem_may_be_without_state(name, tree):
    """1/2 |theta|^2 at every step of an episode of two windows has the gradient theta."""
    theta, num_samples = TREES[tree], 2048
    problem = InnerProblem(
        reset=lambda theta, key, outer_step: Episode(key, jnp.int32(0), jnp.int32(4), (), ()),
        step=lambda theta, e: (e._replace(step=e.step + 1), 0.5 * jnp.sum(ravel_pytree(theta)[0] ** 2)),
        longest=4,
    )
    grads, metrics = run_windows(name, problem, Sampling(num_samples, 2, 0.1), 4, theta=theta)
    assert jax.tree.structure(grads) == jax.tree.structure(theta)
    grads, truth = jax.vmap(lambda g: ravel_pytree(g)[0])(grads), ravel_pytree(theta)[0]
    # An entry of w (e . g) / sigma^2 has variance |g|^2 + g_j^2 where w = e, at most twice as much where w adds up
    # two draws; smoothed gradients have sigma^2. Four standard errors.
    error = 4 * (2 * (jnp.sum(truth**2) + jnp.max(truth**2)) / num_samples) ** 0.5
    np.testing.assert_allclose(grads, jnp.broadcast_to(truth, grads.shape), atol=float(error))
    np.testing.assert_array_equal(metrics["num_valid"], num_samples)
    assert metrics["frac_dead"].max() == 0


def test_without_parameters_there_is_nothing_to_bootstrap():
    with pytest.raises(UserError, match="set InnerProblem.learner"):
        ESTIMATORS["bmg"](linear_system(4)._replace(learner=None), Sampling(), devices.mesh(1))


def sabotaged(horizon, worst=float("inf"), inner_too=False):
    """The linear system, but episodes whose key is odd have a loss that is not finite."""
    base = linear_system(horizon)
    is_bad = lambda key: jax.random.bits(key) % 2 == 1

    def step(theta, episode):
        episode, loss = base.step(theta, episode)
        bad = is_bad(episode.key)
        inner = jnp.where(bad & inner_too, jnp.nan, episode.inner)
        return episode._replace(inner=inner), jnp.where(bad, jnp.nan, loss)

    return base._replace(step=step, worst=worst), is_bad


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_a_sample_that_is_not_finite_leaves_the_others_alone(name):
    problem, _ = sabotaged(4)
    config = Sampling(num_samples=8, window=4, sigma=0.1)
    grads, metrics = run_windows(name, problem, config, 1)
    good = metrics["num_valid"][0]
    assert 0 < good < 8
    estimator = ESTIMATORS[name](linear_system(4), config, devices.mesh(1))
    keys = estimator.init(THETA, jax.random.key(0)).key
    sub = jax.vmap(lambda k: jax.random.fold_in(jax.random.fold_in(k, 1), 1))(keys)
    kept = keys[jax.vmap(jax.random.bits)(sub) % 2 == 0]
    single = ESTIMATORS[name](linear_system(4), Sampling(1, 4, 0.1), devices.mesh(1))
    state = single.init(THETA, jax.random.key(0))
    estimate = jax.jit(lambda k: single.estimate(THETA, state._replace(key=k[None]), 0)[0])
    alone = [estimate(k) for k in kept]
    assert len(alone) == good
    np.testing.assert_allclose(grads[0], np.mean(alone, axis=0), rtol=1e-5)


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_a_loss_beyond_the_worst_counts_as_the_worst(name):
    problem, _ = sabotaged(4, worst=7.0)
    grads, metrics = run_windows(name, problem, Sampling(num_samples=8, window=4, sigma=0.1), 1)
    assert metrics["num_valid"][0] == 8 and 0 < metrics["frac_capped"][0] < 1
    assert np.isfinite(grads).all()


@pytest.mark.parametrize("name", ONLINE)
def test_a_dead_sample_starts_a_new_episode(name):
    problem, _ = sabotaged(1000, worst=7.0, inner_too=True)
    _, metrics = run_windows(name, problem, Sampling(num_samples=8, window=4, sigma=0.1, staggered=False), 12)
    # Every reset draws a key that is good with chance one half, and good episodes last.
    assert metrics["frac_dead"][0] > 0 and metrics["frac_dead"][-1] < metrics["frac_dead"][0]


@pytest.mark.parametrize("name", ONLINE)
def test_staggered_samples_do_not_end_together(name):
    config = Sampling(num_samples=32, window=2, sigma=0.1)
    estimator = ESTIMATORS[name](linear_system(20), config, devices.mesh(1))
    state = estimator.init(THETA, jax.random.key(0))
    _, state, _ = jax.jit(estimator.estimate)(THETA, state, 0)
    horizons = np.asarray(state.episode.horizon)
    assert set(horizons) <= set(range(2, 21, 2)) and len(set(horizons)) > 4


@pytest.mark.parametrize("bad", [{"num_samples": 0}, {"window": 0}, {"sigma": 0.0}, {"sigma": -1.0}, {"at_once": -1}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(UserError, match="must be at least 1|need a sigma above 0|must not be negative"):
        ESTIMATORS["pes"](linear_system(4), Sampling(**bad), devices.mesh(1))
