"""Disco103: the arrays of its haiku modules, in an archive of ``numpy.savez``.

Source: Oh et al., Nature, 2025, doi:10.1038/s41586-025-09761-x; google-deepmind/disco_rl,
disco_rl/update_rules/weights/disco_103.npz.
"""

from metaopt.core import Theta
from metaopt.importers.arrays import Arrays, Shapes, check
from metaopt.importers.imported import ImportedWeights

LIFETIME = "lstm/~/meta_lstm/~unroll/"
# The matrix of each layer of a network's inputs: y, z, and the two across actions.
INPUTS = {
    ("y", "hidden"): ("mlp/~/linear_0", (600, 16)),
    ("y", "out"): ("mlp/~/linear_1", (16, 1)),
    ("z", "hidden"): ("mlp_1/~/linear_0", (600, 16)),
    ("z", "out"): ("mlp_1/~/linear_1", (16, 1)),
    ("actions", "hidden"): ("sequential/conv1_d", (1, 18, 16)),
    ("actions", "out"): ("sequential/conv1_d_1", (1, 32, 2)),
}
# Our path of each layer -> haiku's name of it, and the shape of its matrix; convolutions have one tap.
LAYERS: dict[tuple[str, ...], tuple[str, tuple[int, ...]]] = {
    **{("inputs", *path): (f"lstm/{name}", shape) for path, (name, shape) in INPUTS.items()},
    ("lstm",): ("lstm/lstm/linear", (283, 1024)),
    ("gate",): ("lstm/linear", (128, 256)),
    ("y",): ("lstm/linear_2", (256, 600)),
    ("z",): ("lstm/linear_3", (256, 600)),
    ("policy", "hidden"): ("lstm/sequential_1/conv1_d", (1, 516, 16)),
    ("policy", "out"): ("lstm/linear_4", (16, 1)),
    **{("lifetime", "inputs", *path): (LIFETIME + name, shape) for path, (name, shape) in INPUTS.items()},
    ("lifetime", "state"): ("lstm/linear_1", (256, 1)),
    ("lifetime", "summary"): (f"{LIFETIME}mlp_2/~/linear_0", (29, 16)),
    ("lifetime", "lstm"): (f"{LIFETIME}lstm/linear", (144, 512)),
}
SHAPES: Shapes = {
    f"{name}/{kind}": shape if kind == "w" else shape[-1:] for name, shape in LAYERS.values() for kind in "wb"
}


def recognizes(arrays: Arrays) -> bool:
    """Whether there is a network that remembers an agent's life."""
    return any(path.startswith(LIFETIME) for path in arrays)


def convert(arrays: Arrays) -> ImportedWeights:
    """Converts to theta of the family disco."""
    check(arrays, SHAPES)
    theta: Theta = {}
    for (*parents, last), (name, shape) in LAYERS.items():
        branch = theta
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = {"w": arrays[f"{name}/w"].reshape(shape[-2:]), "b": arrays[f"{name}/b"]}
    return ImportedWeights("disco", {}, theta)
