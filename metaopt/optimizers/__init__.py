"""Learned optimizers: gradients in, updates out, one family a file.

To add a family, write a module with ``Config`` and ``build(config)`` and add its
line to FAMILIES; the contract tests find it there.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from metaopt.core import LearnedOptimizer
from metaopt.errors import UserError, check_type, unknown
from metaopt.optimizers import celo, celo2, coordinate_lstm, hand, l2o_pa, mlp, open, small_fc, velo

FAMILIES = {
    "celo": celo,
    "celo2": celo2,
    "coordinate_lstm": coordinate_lstm,
    "hand": hand,
    "l2o_pa": l2o_pa,
    "mlp": mlp,
    "open": open,
    "small_fc": small_fc,
    "velo": velo,
}


def build(family: str, **settings: Any) -> LearnedOptimizer:
    """Builds a learned optimizer by name, e.g. ``build("small_fc", hidden=8)``.

    Raises:
      UserError: for a family or a setting that does not exist (the nearest names
        are listed), or a setting of the wrong type or value.
    """
    if family not in FAMILIES:
        raise unknown("optimizer family", family, FAMILIES)
    module = FAMILIES[family]
    fields = {f.name: f for f in dataclasses.fields(module.Config)}
    for name, value in settings.items():
        if name not in fields:
            raise unknown(f"setting of {family}", name, fields)
        check_type(f"{family}: {name}", value, fields[name].default)
    try:
        optimizer = module.build(module.Config(**settings))
    except ValueError as error:
        raise UserError(f"{family}: {error}") from error
    # theta is float32 everywhere, with jax_enable_x64 too: it is what checkpoints hold.
    narrow = lambda theta: jax.tree.map(lambda x: x.astype(jnp.float32), theta)
    return optimizer._replace(init=lambda key: narrow(optimizer.init(key)))
