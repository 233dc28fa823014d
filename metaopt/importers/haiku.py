"""Entries that the haiku trees of VeLO, Celo and Celo2 share: the per-parameter network and the scheduler.

The scheduler is the recurrent network of VeLO and Celo. Names are those of HyperV2.

Source: google/learned_optimization, research/general_lopt/hyper_v2.py.
"""

import numpy as np

from metaopt.importers.arrays import Arrays

# Number of channels in each group that has its own first matrix: g, clipped g, p, momentum, ...
GROUPS = (1, 1, 1, 3, 1, 3, 1, 3, 1, 3, 3, 3, 3, 3)
NUM_OUTPUTS = 3
NETWORK, SCHEDULER = "ff_mod_stack/~/", "rnn_params/"
UNUSED = "linear"  # layer whose output HyperV2 overwrites


def network_shapes(bank: tuple[int, ...], hidden: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the per-parameter network's entries.

    Args:
      bank: leading axis of all entries, (number of networks,); () without a bank.
      hidden: units in each hidden layer.
    """
    layers = {f"w0__{i}": (num_channels, hidden) for i, num_channels in enumerate(GROUPS)}
    layers |= {"b0": (hidden,), "w1": (hidden, hidden), "b1": (hidden,)}
    layers |= {"w2": (hidden, NUM_OUTPUTS), "b2": (NUM_OUTPUTS,)}
    return {NETWORK + name: (*bank, *shape) for name, shape in layers.items()}


def network(arrays: Arrays, num_outputs: int) -> Arrays:
    """The weights of the network, its first matrices joined; only the first ``num_outputs`` outputs are kept."""
    weights = {name: arrays[NETWORK + name] for name in ("b0", "w1", "b1", "w2", "b2")}
    groups = [arrays[f"{NETWORK}w0__{i}"] for i in range(len(GROUPS))]  # in the order of numbers, not of names
    used = {name: weights[name][..., :num_outputs] for name in ("w2", "b2")}
    return {**weights, **used, "w0": np.concatenate(groups, axis=-2)}


def scheduler_shapes(num_inputs: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the scheduler's entries, without the layer that outputs the controls."""
    layers = dict.fromkeys((UNUSED, "linear_1", "linear_2"), (num_inputs, hidden))
    layers |= {"rnn/linear": (2 * hidden, 4 * hidden), "step_size": (hidden, 1)}
    return {f"lstm_init_state/{name}": (1, hidden) for name in ("hidden", "cell")} | dense_shapes(layers)


def dense_shapes(layers: dict[str, tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    """Shapes of the matrix and the bias of each layer, given the shapes of the matrices."""
    weights = {f"{SCHEDULER}{name}/w": shape for name, shape in layers.items()}
    return weights | {f"{SCHEDULER}{name}/b": shape[1:] for name, shape in layers.items()}


def scheduler(arrays: Arrays) -> dict[str, Arrays]:
    """The scheduler under the names of ``common.recurrent``, without its unused layer."""
    return {
        "pooled": dense(arrays, "linear_1"),
        "direct": dense(arrays, "linear_2"),
        "lstm": dense(arrays, "rnn/linear"),
        "step_size": dense(arrays, "step_size"),
        "initial": {name: arrays[f"lstm_init_state/{name}"] for name in ("hidden", "cell")},
    }


def dense(arrays: Arrays, name: str) -> Arrays:
    """The matrix and the bias of one layer of the scheduler."""
    return {kind: arrays[f"{SCHEDULER}{name}/{kind}"] for kind in ("w", "b")}
