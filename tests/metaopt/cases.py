"""Every optimizer family, built and compiled once for all contract tests.

A family joins by its line in FAMILIES; settings worth testing beside the defaults are listed in VARIANTS.
Where ``num_tensors`` is a setting it is that of the tensors at hand.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from metaopt import families

VARIANTS = [
    ("hand", {"rule": "adamw", "schedule_knots": 3}),
    ("hand", {"rule": "adamw", "num_tensors": 3}),
    ("hand", {"rule": "momentum"}),
    ("hand", {"rule": "momentum", "decay_steps": 2, "fixed": "log_one_minus_momentum"}),
    ("coordinate_lstm", {"rule": "rnnprop"}),
    ("l2o_pa", {"heads": "p,a,b1,b2", "norm": "softplus", "l1": 0.1}),
    ("small_fc", {"hidden": 8, "schedule": True, "relative": True}),
]
OPTIMIZERS = sorted(name for name, entry in families.FAMILIES.items() if entry.kind == "optimizer")
CASES = [(family, {}) for family in OPTIMIZERS] + VARIANTS
IDS = ["-".join([family, *map(str, settings.values())]) for family, settings in CASES]
NUM_STEPS = 10
VALUE = jnp.float32(1.5)


@functools.cache
def built(index: int, num_tensors: int = 3):
    family, settings = CASES[index]
    if "num_tensors" in settings:
        settings = settings | {"num_tensors": num_tensors}
    optimizer = families.build(family, **settings)
    return optimizer, optimizer.init(jax.random.key(0))


@functools.cache
def bound(index: int, num_tensors: int = 3):
    optimizer, theta = built(index, num_tensors)
    return optimizer.bind(theta, num_steps=NUM_STEPS)


@functools.cache
def compiled(index: int, num_tensors: int = 3):
    """The update, compiled once for each kind of arguments."""
    return jax.jit(bound(index, num_tensors).update)


def problem(dtype=jnp.float32):
    draw = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape).astype(dtype)
    params = {"w": draw(0, 4, 3), "b": jnp.zeros((3,), dtype), "s": jnp.ones((), dtype)}
    return params, {"w": draw(1, 4, 3), "b": draw(2, 3), "s": draw(3)}


def close(a, b, rtol=1e-5, atol=1e-7):
    """Float32 with another order of summation: a few units in the last place."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)
