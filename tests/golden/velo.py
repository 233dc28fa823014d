"""Replay of VeLO (HyperV2 of google/learned_optimization), with and without its two defects."""

import jax
import jax.numpy as jnp
import numpy as np

from metaopt import optimizers
from metaopt.importers import velo
from tests.golden.per_parameter import replay_scenarios


def replay(path) -> list[tuple[str, float]]:
    """The variant of a file in every scenario, imported as its weights would be."""
    data = np.load(path)
    (variant,) = {name.split("/")[0] for name in data.files} - {"in"}
    prefix, bugged = f"{variant}/theta/", variant == "bugged"
    arrays = {name.removeprefix(prefix).replace("|", "/"): data[name] for name in data.files if prefix in name}
    found = velo.convert(arrays, bugged_loss_features=bugged, bugged_lstm_state=bugged)
    optimizer, theta = optimizers.build(found.family, **found.config), jax.tree.map(jnp.asarray, found.theta)
    return replay_scenarios(data, variant, optimizer, theta)
