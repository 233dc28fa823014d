"""The parts that the haiku trees of VeLO, Celo and Celo2 share, under the names of HyperV2.

Source: google/learned_optimization, research/general_lopt/hyper_v2.py.
"""

import numpy as np

from metaopt.importers.arrays import Arrays

# The first layer has a matrix for each of its groups of inputs: g, clipped g, p, momentum ...
GROUPS = (1, 1, 1, 3, 1, 3, 1, 3, 1, 3, 3, 3, 3, 3)
NUM_OUTPUTS = 3
NETWORK, SCHEDULER = "ff_mod_stack/~/", "rnn_params/"
DEAD = "linear"  # HyperV2 overwrites the output of this layer


def network_shapes(bases: tuple[int, ...], hidden: int) -> dict[str, tuple[int, ...]]:
    """Of the per-parameter networks; ``bases`` is the leading axis, or ()."""
    layers = {f"w0__{i}": (rows, hidden) for i, rows in enumerate(GROUPS)}
    layers |= {"b0": (hidden,), "w1": (hidden, hidden), "b1": (hidden,)}
    layers |= {"w2": (hidden, NUM_OUTPUTS), "b2": (NUM_OUTPUTS,)}
    return {NETWORK + name: (*bases, *shape) for name, shape in layers.items()}


def network(arrays: Arrays, num_live: int) -> Arrays:
    """The network with one first matrix and the outputs that are used."""
    entry = {name: arrays[NETWORK + name] for name in ("b0", "w1", "b1", "w2", "b2")}
    groups = [arrays[f"{NETWORK}w0__{i}"] for i in range(len(GROUPS))]  # by number: sorted names have 10 before 2
    live = {name: entry[name][..., :num_live] for name in ("w2", "b2")}
    return {**entry, **live, "w0": np.concatenate(groups, axis=-2)}


def scheduler_shapes(num_inputs: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Of the recurrent part, without its controls."""
    layers = dict.fromkeys((DEAD, "linear_1", "linear_2"), (num_inputs, hidden))
    layers |= {"rnn/linear": (2 * hidden, 4 * hidden), "step_size": (hidden, 1)}
    return {f"lstm_init_state/{part}": (1, hidden) for part in ("hidden", "cell")} | dense_shapes(layers)


def dense_shapes(layers: dict[str, tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    """Of the matrix and the bias of each layer."""
    weights = {f"{SCHEDULER}{name}/w": shape for name, shape in layers.items()}
    return weights | {f"{SCHEDULER}{name}/b": shape[1:] for name, shape in layers.items()}


def scheduler(arrays: Arrays) -> dict[str, Arrays]:
    """The recurrent part under our names, without the layer that is dead."""
    return {
        "pooled": dense(arrays, "linear_1"),
        "direct": dense(arrays, "linear_2"),
        "lstm": dense(arrays, "rnn/linear"),
        "step_size": dense(arrays, "step_size"),
        "initial": {part: arrays[f"lstm_init_state/{part}"] for part in ("hidden", "cell")},
    }


def dense(arrays: Arrays, name: str) -> Arrays:
    return {kind: arrays[f"{SCHEDULER}{name}/{kind}"] for kind in ("w", "b")}
