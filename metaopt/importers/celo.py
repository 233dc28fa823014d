"""Celo and Celo-Adam.

Source: Moudgil et al., "Celo: training versatile learned optimizers on a compute diet",
arXiv:2501.12670; amoudgl/celo.
"""

from metaopt.core import Theta
from metaopt.importers import haiku
from metaopt.importers.arrays import Arrays, check, size
from metaopt.importers.imported import ImportedWeights

NUM_INPUTS = 18  # inputs of the scheduler: nine features of time, nine of the loss
INPUT_LAYERS = [f"{haiku.SCHEDULER}{name}/w" for name in ("linear", "linear_1", "linear_2")]


def recognizes(arrays: Arrays) -> bool:
    """Whether there is a scheduler with 18 inputs: VeLO's has 30."""
    return any(path in arrays and getattr(arrays[path], "shape", ())[:1] == (NUM_INPUTS,) for path in INPUT_LAYERS)


def convert(arrays: Arrays) -> ImportedWeights:
    """Converts to theta of the family celo; without a per-parameter network it is Celo-Adam.

    The controls mix a bank of one network, so they have no effect and are dropped.
    """
    hidden = size(arrays, "rnn_params/step_size/w", 0)
    shapes = haiku.scheduler_shapes(NUM_INPUTS, hidden)
    has_network = any(path.startswith(haiku.NETWORK) for path in arrays)
    if has_network:
        shapes |= haiku.dense_shapes({"rnn_to_controls": (hidden, 1)}) | haiku.network_shapes((1,), 4)
    check(arrays, shapes)
    theta: Theta = {"scheduler": haiku.scheduler(arrays)}
    if has_network:
        theta["network"] = {name: array[0] for name, array in haiku.network(arrays, 2).items()}
    return ImportedWeights("celo", {"rule": "mlp" if has_network else "adam", "hidden": hidden}, theta)
