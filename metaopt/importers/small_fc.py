"""small_fc as saved by other projects: AdafacMLPLOpt, muLO, ELO and PyLO's MetaMLP.

Source: google/learned_optimization, learned_optimizers/adafac_mlp_lopt.py;
bentherien/mu_learned_optimization; Belilovsky-Lab/pylo, pylo/models/Meta_MLP.py.
"""

import numpy as np

from metaopt.errors import UserError, unknown
from metaopt.importers.arrays import Arrays, check, size
from metaopt.importers.imported import ImportedWeights
from metaopt.importers.questions import Question, require

NUM_INPUTS = 39
DECAYS = {"momentum_decays": "momentum_decays", "rms_decays": "rms_decays", "adafactor_decays": "factored_decays"}
DECAY_SHAPES = {"momentum_decays": (3,), "rms_decays": (1,), "adafactor_decays": (3,)}
HAIKU = "nn/~/"
PYLO = {"input": "0", "linear_0": "1", "output": "2"}  # PyLO's name of each layer -> our number

# Decays of muLO's weights (btherien/mulo): PyLO has them in its source code instead of the file.
MULO = {
    "momentum_decays": (0.15216392, 0.14245212, 0.06812963),
    "rms_decays": (0.01079706,),
    "factored_decays": (0.18621896, -0.10864615, -0.06185547),
}
INITIAL = {name: (0.0,) * len(values) for name, values in MULO.items()}
CHOICES = {"mulo": MULO, "initial": INITIAL}
MULO_STEP_MULTIPLIER = 1e-2
DECAYS_QUESTION = Question('"mulo" for btherien/mulo or "initial" for ELO, which learns none', "mulo")
STEP_QUESTION = Question("0.01 for muLO, 0.001 for its baseline and by default in AdafacMLPLOpt and ELO", 1e-3)


def recognizes(arrays: Arrays) -> bool:
    """Whether there are learned decays, or a network under its haiku names or PyLO's."""
    return any(path in DECAYS or path.startswith((HAIKU, "network.")) for path in arrays)


def convert(arrays: Arrays, *, decays: str | None = None, step_multiplier: float | None = None) -> ImportedWeights:
    """Converts to theta of the family small_fc.

    Args:
      arrays: entries of the file.
      decays: "mulo" or "initial", for files that do not hold the decays.
      step_multiplier: what the learned step is multiplied by, which no file holds. None only with
        ``decays="mulo"``, for muLO's 0.01.

    Raises:
      UserError: if an option must be given or left out, or an entry does not fit.
    """
    network = _from_pylo(arrays) if any(path.startswith("network.") for path in arrays) else _from_haiku(arrays)
    own = {ours: arrays[theirs] for theirs, ours in DECAYS.items() if theirs in arrays}
    if own and decays is not None:
        raise UserError("it holds its own decays: leave the option decays out")
    hidden = network["b0"].shape[0]
    if decays == "mulo" and step_multiplier is None:
        step_multiplier = MULO_STEP_MULTIPLIER
    questions = {} if own else {"decays": DECAYS_QUESTION}
    if own or decays == "initial":
        questions["step_multiplier"] = STEP_QUESTION
    require({"decays": decays, "step_multiplier": step_multiplier}, questions)
    theta = {**(own or _chosen(decays)), "network": network}
    return ImportedWeights(
        "small_fc", {"hidden": hidden, "step_multiplier": step_multiplier, "exp_multiplier": 1e-3}, theta
    )


def _network_shapes(hidden: int) -> dict[str, tuple[int, ...]]:
    sizes = (NUM_INPUTS, hidden, hidden, 2)
    weights = {f"w{i}": sizes[i : i + 2] for i in range(3)}
    return weights | {f"b{i}": sizes[i + 1 : i + 2] for i in range(3)}


def _from_haiku(arrays: Arrays) -> Arrays:
    shapes = {HAIKU + name: shape for name, shape in _network_shapes(size(arrays, HAIKU + "b0", 0)).items()}
    check(arrays, shapes | (DECAY_SHAPES if any(path in DECAYS for path in arrays) else {}))
    return {path.removeprefix(HAIKU): arrays[path] for path in shapes}


def _from_pylo(arrays: Arrays) -> Arrays:
    """The network under our names; PyTorch stores the matrix of a layer as (out, in)."""
    ours = _network_shapes(size(arrays, "network.input.bias", 0))
    theirs = {f"network.{name}.weight": ours[f"w{i}"][::-1] for name, i in PYLO.items()}
    check(arrays, theirs | {f"network.{name}.bias": ours[f"b{i}"] for name, i in PYLO.items()})
    weights = {f"w{i}": arrays[f"network.{name}.weight"].T for name, i in PYLO.items()}
    return weights | {f"b{i}": arrays[f"network.{name}.bias"] for name, i in PYLO.items()}


def _chosen(decays: str | None) -> Arrays:
    if decays not in CHOICES:
        raise unknown("choice of decays", str(decays), CHOICES)
    return {name: np.array(values, np.float32) for name, values in CHOICES[decays].items()}
