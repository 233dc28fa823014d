"""OPEN: the meta-parameters as one vector, in the order in which JAX flattens their tree.

Source: Goldie et al., arXiv:2407.07082; AlexGoldie/rl-learned-optimization,
rl_optimizer/network.py (the tree) and eval.py (the vector, reshaped by evosax).
"""

import itertools
import math
from typing import Any

import numpy as np

from metaopt.errors import UserError
from metaopt.importers.arrays import Arrays, check, size
from metaopt.importers.imported import ImportedWeights

NUM_INPUTS = 19
SIZES = ((8, 16), (16, 32))  # units of the GRU and of the MLP: the published optimizer and the larger one
GATES = "rzn"  # reset, update, new
ENTRY = "array"  # the only one in a file of numpy.save


def recognizes(arrays: Arrays) -> bool:
    return set(arrays) == {ENTRY}


def convert(arrays: Arrays, *, num_minibatches: int = 1, num_epochs: int = 1) -> ImportedWeights:
    """Theta of the family open; the length of the vector tells its sizes.

    Args:
      arrays: of a file.
      num_minibatches, num_epochs: of the PPO that it will train.
    """
    size(arrays, ENTRY, 0)
    vector = arrays[ENTRY]
    for hidden, width in SIZES:
        shapes = _shapes(hidden, width)
        if vector.shape == (_total(shapes),):
            check(arrays, {ENTRY: vector.shape})
            return ImportedWeights(
                "open",
                {"hidden": hidden, "width": width, "num_minibatches": num_minibatches, "num_epochs": num_epochs},
                _theta(_split(vector, shapes)),
            )
    lengths = " or ".join(str(_total(_shapes(*sizes))) for sizes in SIZES)
    raise UserError(f"it holds an array of shape {list(vector.shape)}; OPEN is a vector of {lengths}")


def _shapes(hidden: int, width: int) -> dict[str, tuple[int, ...]]:
    """The tree of flax, in the order of its sorted names."""
    gru = {f"gru_params/h{g}/kernel": (hidden, hidden) for g in GATES}
    gru |= {f"gru_params/i{g}/kernel": (NUM_INPUTS, hidden) for g in GATES}
    gru |= {f"gru_params/{name}/bias": (hidden,) for name in ("hn", "in", "ir", "iz")}
    sizes = (hidden, width, width, 3)
    mlp = {f"params/layers_{3 * i}/kernel": sizes[i : i + 2] for i in range(3)}
    mlp |= {f"params/layers_{3 * i}/bias": sizes[i + 1 : i + 2] for i in range(3)}
    mlp |= {f"params/layers_{3 * i + 1}/{name}": (width,) for i in range(2) for name in ("bias", "scale")}
    return dict(sorted((gru | mlp).items(), key=lambda entry: entry[0].split("/")))


def _total(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(map(math.prod, shapes.values()))


def _split(vector: np.ndarray, shapes: dict[str, tuple[int, ...]]) -> Arrays:
    ends = list(itertools.accumulate(map(math.prod, shapes.values())))
    pieces = np.split(vector, ends[:-1])
    return {path: piece.reshape(shape) for (path, shape), piece in zip(shapes.items(), pieces, strict=True)}


def _theta(entries: Arrays) -> dict[str, Any]:
    side_by_side = lambda prefix, kind: np.concatenate([entries[f"gru_params/{prefix}{g}/{kind}"] for g in GATES], -1)
    layer = lambda i, kind: entries[f"params/layers_{i}/{kind}"]
    mlp = {f"w{i}": layer(3 * i, "kernel") for i in range(3)} | {f"b{i}": layer(3 * i, "bias") for i in range(3)}
    mlp |= {f"scale{i}": layer(3 * i + 1, "scale") for i in range(2)}
    mlp |= {f"shift{i}": layer(3 * i + 1, "bias") for i in range(2)}
    gru = {"wi": side_by_side("i", "kernel"), "bi": side_by_side("i", "bias"), "wh": side_by_side("h", "kernel")}
    return {"gru": gru | {"bh": entries["gru_params/hn/bias"]}, "mlp": mlp}
