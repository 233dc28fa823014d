"""Shaping of losses, across devices and with samples that do not count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from meta_train.estimators import shaping
from meta_train.parallel import devices

SIGMA = 0.5
LOSSES = np.array([[1.0, 3.0], [2.0, 2.0], [7.0, 0.0], [4.0, 9.0]], np.float32)
VALID = np.ones(4, bool)


def factors(name, losses=LOSSES, valid=VALID, num_devices=1):
    over_devices = jax.shard_map(
        shaping.build(name, SIGMA),
        mesh=devices.mesh(num_devices),
        in_specs=(P(devices.SAMPLE_AXIS), P(devices.SAMPLE_AXIS)),
        out_specs=P(devices.SAMPLE_AXIS),
        check_vma=False,
    )
    return np.asarray(jax.jit(over_devices)(jnp.asarray(losses), jnp.asarray(valid)))


@pytest.mark.parametrize("num_devices", [1, 4])
def test_factors_by_hand(num_devices):
    difference = LOSSES[:, 0] - LOSSES[:, 1]
    unit = 2 * SIGMA**2
    np.testing.assert_allclose(factors("none", num_devices=num_devices), difference / unit)
    np.testing.assert_allclose(factors("sign", num_devices=num_devices), np.sign(difference) / unit)
    # In order 0 1 2 2 3 4 7 9, the two equal ones share the middle of their places.
    ranks = np.array([[1, 4], [2.5, 2.5], [6, 0], [5, 7]]) / 7 - 0.5
    np.testing.assert_allclose(factors("rank", num_devices=num_devices), (ranks[:, 0] - ranks[:, 1]) / unit, rtol=1e-6)
    normalized = difference / (2 * SIGMA * LOSSES.std())
    np.testing.assert_allclose(factors("normalized", num_devices=num_devices), normalized, rtol=1e-6)


@pytest.mark.parametrize("name", ["rank", "normalized"])
def test_a_sample_that_does_not_count_does_not_move_the_others(name):
    broken = LOSSES.copy()
    broken[1] = np.nan
    shaped = factors(name, broken, np.isfinite(broken).all(axis=1))
    kept = [0, 2, 3]
    alone = factors(name, LOSSES[kept], VALID[kept])
    # Ranks are among all members; the missing two take the last places.
    scale = 5 / 7 if name == "rank" else 1.0
    np.testing.assert_allclose(shaped[kept], scale * alone, rtol=1e-6)


@pytest.mark.parametrize("name, change", [("rank", np.exp), ("sign", np.exp), ("normalized", lambda x: 10 * x + 3)])
def test_what_each_is_blind_to(name, change):
    np.testing.assert_allclose(factors(name), factors(name, change(LOSSES).astype(np.float32)), rtol=1e-5, atol=1e-6)


def test_single_members_have_no_difference():
    np.testing.assert_allclose(factors("none", LOSSES[:, :1]), LOSSES[:, 0] / SIGMA**2)
