"""VeLO as PyLO saves it: in two files, the recurrent network and the bank of per-parameter networks.

Source: Belilovsky-Lab/pylo, pylo/models/VeLO_RNN.py and VeLO_MLP.py; Hugging Face
Pauljanson002/VeLO_RNN and Pauljanson002/VeLO_MLP.
"""

import itertools

import numpy as np

from metaopt.importers import haiku
from metaopt.importers.arrays import Arrays, Shapes, check, size

# PyLO's names -> haiku's.
LAYERS = {
    "mix_layer1": "linear",
    "mix_layer2": "linear_1",
    "final_mix_layer": "linear_2",
    "lstm.linear": "rnn/linear",
    "rnn_to_controls": "rnn_to_controls",
    "step_size": "step_size",
}
STATES = {"lstm_init_state.0": "hidden", "lstm_init_state.1": "cell"}
# Entries without the underscore hold the mixed weights of the last step and are not needed.
WEIGHTS = {"input_weights_": "w0", "hidden_weights_.0": "w1", "output_weights_": "w2"}
BIASES = {"input_bias_": "b0", "hidden_bias_.0": "b1", "output_bias_": "b2"}


def is_recurrent(arrays: Arrays) -> bool:
    """Whether these are entries of VeLO_RNN."""
    return any(path.startswith((*LAYERS, *STATES)) and "/" not in path for path in arrays)


def is_bank(arrays: Arrays) -> bool:
    """Whether these are entries of VeLO_MLP."""
    return any(path in WEIGHTS or path in BIASES for path in arrays)


def recurrent(arrays: Arrays, num_inputs: int) -> Arrays:
    """The recurrent network under its haiku names; PyTorch stores a matrix as (out, in)."""
    hidden, bank = size(arrays, "step_size.weight", 1), size(arrays, "rnn_to_controls.bias", 0)
    layers = dict.fromkeys(("mix_layer1", "mix_layer2", "final_mix_layer"), (hidden, num_inputs))
    layers |= {"lstm.linear": (4 * hidden, 2 * hidden), "rnn_to_controls": (bank, hidden), "step_size": (1, hidden)}
    shapes: Shapes = {f"{name}.weight": shape for name, shape in layers.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    check(arrays, shapes | dict.fromkeys(STATES, (1, hidden)))
    named = {f"{haiku.SCHEDULER}{ours}/w": arrays[f"{theirs}.weight"].T for theirs, ours in LAYERS.items()}
    named |= {f"{haiku.SCHEDULER}{ours}/b": arrays[f"{theirs}.bias"] for theirs, ours in LAYERS.items()}
    return named | {f"lstm_init_state/{ours}": arrays[theirs] for theirs, ours in STATES.items()}


def bank(arrays: Arrays, hidden: int) -> Arrays:
    """The bank under its haiku names, its first matrix split into the groups of ``haiku.GROUPS``."""
    sizes = (sum(haiku.GROUPS), hidden, hidden, haiku.NUM_OUTPUTS)
    num = size(arrays, "output_bias_", 0)
    shapes: Shapes = {name: (num, sizes[i + 1], sizes[i]) for i, name in enumerate(WEIGHTS)}
    shapes |= {name: (num, sizes[i + 1]) for i, name in enumerate(BIASES)}
    check(arrays, shapes | {name.replace("_.", ".").removesuffix("_"): shape[1:] for name, shape in shapes.items()})
    layers = {ours: arrays[theirs].swapaxes(1, 2) for theirs, ours in WEIGHTS.items()}
    layers |= {ours: arrays[theirs] for theirs, ours in BIASES.items()}
    ends = list(itertools.accumulate(haiku.GROUPS))[:-1]
    layers |= {f"w0__{i}": group for i, group in enumerate(np.split(layers.pop("w0"), ends, axis=1))}
    return {haiku.NETWORK + name: array for name, array in layers.items()}
