"""The resume buffer by hand, and inside an estimator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_train import devices
from meta_train.estimators import ESTIMATORS, resume
from meta_train.estimators.samples import Config
from metaopt.core import Episode
from metaopt.errors import UserError
from tests.meta_train.problems import THETA, linear_system


def episode(step, horizon=10, key=0):
    return Episode(jax.random.key(key), jnp.int32(step), jnp.int32(horizon), (), jnp.full((2, 1), float(step)))


def follow(windows, slots=2):
    """Pushes windows ``(step, losses of both members, is_first, is_last)``."""
    buffer = resume.init(episode(0), slots, members=2)
    for step, losses, is_first, is_last in windows:
        both = jnp.array([losses, losses], jnp.float32)
        buffer = resume.push(buffer, episode(step), both, jnp.bool(is_first), jnp.bool(is_last))
    return buffer


def test_states_before_a_record_rise_are_kept():
    buffer = follow([(0, [5, 4, 3], 1, 0), (3, [2, 4, 1], 0, 0), (6, [1, 2, 1], 0, 0), (9, [0, 3, 4], 0, 0)])
    # Rises: none, 2, then 1 (no record), then 4.
    assert buffer.count == 2
    np.testing.assert_array_equal(buffer.episodes.step, [3, 9])
    np.testing.assert_array_equal(buffer.highest, [4, 4])


def test_the_oldest_is_replaced_and_the_last_window_kept():
    buffer = follow([(0, [1, 2], 1, 0), (2, [3, 4], 0, 0), (4, [1, 1], 0, 1), (0, [9, 8], 1, 0)])
    assert buffer.count == 3
    np.testing.assert_array_equal(buffer.episodes.step, [4, 2])
    np.testing.assert_array_equal(buffer.highest, [0, 0])  # a new episode starts from nothing


def test_the_next_episode_is_fresh_or_a_kept_one_that_goes_on():
    buffer = follow([(0, [1, 2], 1, 0), (3, [3, 4], 0, 0)])
    fresh = episode(0, horizon=7, key=1)
    keys = jax.random.split(jax.random.key(2), 2000)
    begun = jax.vmap(lambda key: resume.begin(buffer, fresh, key, 0.25))(keys)
    steps = np.asarray(begun.step)
    # Two kept states, begun at steps 0 and 3; 2000 draws: three standard errors are 0.03.
    np.testing.assert_allclose(np.mean(steps == 3), 0.375, atol=0.035)
    np.testing.assert_array_equal(begun.horizon, steps + 7)
    np.testing.assert_array_equal(begun.inner[:, 0, 0], steps)
    assert (jax.random.key_data(begun.key) == jax.random.key_data(fresh.key)).all()  # other data than the first time


def test_an_empty_buffer_gives_a_fresh_episode():
    begun = resume.begin(resume.init(episode(5), 2, 2), episode(0), jax.random.key(0), 0.0)
    assert begun.step == 0 and begun.horizon == 10


@pytest.mark.parametrize("name", ["es_single", "truncated_es", "tbptt", "pes_analytic"])
def test_horizons_grow_beyond_the_longest(name):
    config = Config(num_samples=4, window=2, sigma=0.1, staggered=False, resume=1, resume_fresh=0.0)
    estimator = ESTIMATORS[name](linear_system(4), config, devices.mesh(1))

    def body(state, _):
        _, state, _ = estimator.estimate(THETA, state, 0)
        return state, state.episode.horizon

    _, horizons = jax.lax.scan(body, estimator.init(THETA, jax.random.key(0)), length=10)
    # Every episode of four steps is followed by one from before its last window: two more each time.
    np.testing.assert_array_equal(horizons[::2, 0], [4, 6, 8, 10, 12])


@pytest.mark.parametrize("bad", [{"resume": -1}, {"resume_fresh": 1.5}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        Config(**bad)
