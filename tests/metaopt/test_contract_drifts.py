"""What every drift must satisfy; known values of the published ones are in tests/golden."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import families

DRIFTS = sorted(name for name, entry in families.FAMILIES.items() if entry.kind == "drift")
VARIANTS = [("lpo", {"ppo_seeded": False}), ("lpo", {"largest_feature": 2.0, "hidden": 16})]
CASES = [(family, {}) for family in DRIFTS] + VARIANTS
ALL = pytest.mark.parametrize("family, settings", CASES, ids=lambda x: x if isinstance(x, str) else "-".join(x))
ADVANTAGES = jnp.array([-1e3, -3.0, -0.1, 0.0, 1e-3, 0.5, 10.0, 1e3])
PROGRESS = 0.3


@functools.cache
def drifts(family: str, *settings):
    """Three drifts with meta-parameters far from where they begin, as functions of ratio and advantage."""
    learned = families.build(family, **dict(settings))
    theta = learned.init(jax.random.key(0))

    def moved(seed):
        keys = jax.random.split(jax.random.key(seed), len(jax.tree.leaves(theta)))
        keys = jax.tree.unflatten(jax.tree.structure(theta), list(keys))
        return jax.tree.map(lambda x, key: x + 0.5 * jax.random.normal(key, x.shape), theta, keys)

    return [jax.jit(functools.partial(learned.bind(moved(seed)), progress=PROGRESS)) for seed in range(3)]


@ALL
def test_value_and_derivative_are_zero_where_nothing_changed(family, settings):
    for drift in drifts(family, *settings.items()):
        slope = jax.vmap(jax.grad(drift), (None, 0))
        np.testing.assert_array_equal(drift(jnp.zeros_like(ADVANTAGES), ADVANTAGES), 0.0)
        np.testing.assert_array_equal(slope(0.0, ADVANTAGES), 0.0)


@ALL
def test_a_drift_is_never_negative_and_always_finite(family, settings):
    magnitudes = np.concatenate([np.linspace(0.0, 3.0, 40), [20.0, 88.0, 1e4]])
    logs, advantages = map(jnp.ravel, jnp.meshgrid(jnp.array([*-magnitudes, *magnitudes]), ADVANTAGES))
    for drift in drifts(family, *settings.items()):
        values = drift(logs, advantages)
        assert np.isfinite(values).all() and np.min(values) >= 0.0 and np.max(values) > 0.0
        assert np.isfinite(jax.vmap(jax.grad(drift))(logs, advantages)).all()


@ALL
def test_a_drift_may_be_vmapped_over_theta_and_differentiated(family, settings):
    learned = families.build(family, **settings)
    thetas = jax.vmap(learned.init)(jax.random.split(jax.random.key(1), 3))
    log_ratio, advantage = jnp.array([0.5, -0.7, 0.4]), jnp.array([1.0, -2.0, 0.0])

    def value(theta):
        return jnp.sum(learned.bind(theta, num_steps=10)(log_ratio, advantage, progress=PROGRESS))

    values, grads = jax.jit(jax.vmap(jax.value_and_grad(value)))(thetas)
    for i in range(3):
        of_one = jax.value_and_grad(value)(jax.tree.map(lambda x, i=i: x[i], thetas))
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-7), (values, grads), of_one
        )
    assert any(np.any(g) for g in jax.tree.leaves(grads))


def test_lpo_begins_as_ppo_and_off_the_saddle_of_antithetic_pairs():
    """From zeros, as published, theta + e and theta - e would be one function."""
    learned, ppo = families.build("lpo", margin=1e-7), families.build("ppo")
    theta = learned.init(jax.random.key(0))
    log_ratio, advantage = jnp.linspace(-1.0, 1.0, 21), jnp.linspace(2.0, -2.0, 21)
    begin = learned.bind(theta)(log_ratio, advantage)
    np.testing.assert_allclose(begin, ppo.bind(ppo.init(jax.random.key(0)))(log_ratio, advantage), atol=1e-6)
    noise = jax.tree.map(lambda x: 0.03 * jax.random.normal(jax.random.key(x.size), x.shape), theta)
    pair = [learned.bind(jax.tree.map(lambda t, e, s=s: t + s * e, theta, noise)) for s in (1.0, -1.0)]
    from_zero = [learned.bind(jax.tree.map(lambda e, s=s: s * e, noise)) for s in (1.0, -1.0)]
    difference = lambda pair: float(jnp.max(jnp.abs(pair[0](log_ratio, advantage) - pair[1](log_ratio, advantage))))
    assert difference(pair) > 1e-2 and difference(from_zero) < 1e-6


def test_a_temporally_aware_drift_asks_for_the_progress():
    learned = families.build("ta_lpo")
    drift = learned.bind(learned.init(jax.random.key(0)))
    with pytest.raises(ValueError, match=r"fraction of training that is done: call drift\(log_ratio, advantage, progr"):
        drift(jnp.zeros(3), jnp.ones(3))
