"""OPEN: its meta-parameters are released as one vector, in the order in which JAX flattens their tree.

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
from metaopt.importers.questions import Question, require

NUM_INPUTS = 19
SIZES = ((8, 16), (16, 32))  # units of the GRU and of the MLP: the published optimizer and the larger one
GATES = "rzn"  # reset, update, new
QUESTIONS = {
    "num_minibatches": Question("minibatches in an epoch of the PPO that it will train", 8),
    "num_epochs": Question("epochs in an update of that PPO", 4),
}
ENTRY = "array"  # the only entry of a file written by numpy.save, see ``numpy_file``


def recognizes(arrays: Arrays) -> bool:
    """Whether the file holds one array without a name."""
    return set(arrays) == {ENTRY}


def convert(arrays: Arrays, *, num_minibatches: int | None = None, num_epochs: int | None = None) -> ImportedWeights:
    """Converts to theta of the family open; the number of units follows from the length of the vector.

    Args:
      arrays: entries of the file.
      num_minibatches, num_epochs: settings of the PPO that the optimizer will train: it reads where
        in an update a step is.

    Raises:
      UserError: if the vector has no known length, or an option is missing.
    """
    size(arrays, ENTRY, 0)
    vector = arrays[ENTRY]
    for hidden, width in SIZES:
        shapes = _shapes(hidden, width)
        if vector.shape == (_total(shapes),):
            check(arrays, {ENTRY: vector.shape})
            given = {"num_minibatches": num_minibatches, "num_epochs": num_epochs}
            require(given, QUESTIONS)
            return ImportedWeights("open", {"hidden": hidden, "width": width, **given}, _theta(_split(vector, shapes)))
    lengths = " or ".join(str(_total(_shapes(*sizes))) for sizes in SIZES)
    raise UserError(f"it holds an array of shape {list(vector.shape)}; OPEN is a vector of {lengths}")


def _shapes(hidden: int, width: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the entries of the flax tree, in the order in which JAX flattens it."""
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
    slices = np.split(vector, ends[:-1])
    return {path: entry.reshape(shape) for (path, shape), entry in zip(shapes.items(), slices, strict=True)}


def _theta(entries: Arrays) -> dict[str, Any]:
    """The entries under the names of ``nn.gru`` and of the family open's MLP."""

    def all_gates(name: str) -> np.ndarray:
        return np.concatenate([entries["gru_params/" + name.format(gate)] for gate in GATES], -1)

    mlp = {f"w{i}": entries[f"params/layers_{3 * i}/kernel"] for i in range(3)}
    mlp |= {f"b{i}": entries[f"params/layers_{3 * i}/bias"] for i in range(3)}
    mlp |= {f"scale{i}": entries[f"params/layers_{3 * i + 1}/scale"] for i in range(2)}
    mlp |= {f"shift{i}": entries[f"params/layers_{3 * i + 1}/bias"] for i in range(2)}
    gru = {"wi": all_gates("i{}/kernel"), "bi": all_gates("i{}/bias"), "wh": all_gates("h{}/kernel")}
    return {"gru": gru | {"bh": entries["gru_params/hn/bias"]}, "mlp": mlp}
