"""Replay of VeLO (HyperV2 of google/learned_optimization), with and without its two defects."""

import jax
import jax.numpy as jnp
import numpy as np

from metaopt import families
from metaopt.importers import velo
from metaopt.importers.imported import ImportedWeights
from tests.golden.per_parameter import replay_scenarios


def replay(path) -> list[tuple[str, float]]:
    """Replays the one variant that a file holds, in every scenario."""
    data = np.load(path)
    (variant,) = {name.split("/")[0] for name in data.files} - {"in"}
    found = imported(data, variant)
    optimizer, theta = families.build(found.family, **found.config), jax.tree.map(jnp.asarray, found.theta)
    return replay_scenarios(data, variant, optimizer, theta)


def imported(data, variant: str) -> ImportedWeights:
    """The weights of a variant, converted like those of a released file."""
    prefix, bugged = f"{variant}/theta/", variant == "bugged"
    arrays = {name.removeprefix(prefix).replace("|", "/"): data[name] for name in data.files if prefix in name}
    return velo.convert(arrays, bugged_loss_features=bugged, bugged_lstm_state=bugged, relative=True)
