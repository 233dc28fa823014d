"""Celo2, Celo2-base and ELO-Celo2, as saved by the JAX code or by PyLO.

Source: arXiv:2602.19142 and amoudgl/celo2; arXiv:2607.06772 and xiaol827/ELO.
"""

from metaopt.errors import unknown
from metaopt.importers import haiku
from metaopt.importers.arrays import Arrays, check, size
from metaopt.importers.imported import ImportedWeights
from metaopt.importers.questions import Question, require

# Settings of our family for each variant; the layout of their weights is the same.
VARIANTS = {
    "celo2": {"orthogonalize": True, "vectors": "adamw"},
    "base": {"orthogonalize": False, "vectors": "learned"},
    "elo": {"orthogonalize": True, "vectors": "adamw", "weight_decay": 0.1},
}
QUESTIONS = {
    "variant": Question(f"one of {', '.join(VARIANTS)}, whose files look the same", "celo2"),
    "learning_rate": Question("the step size of your choice, 0.001 in meta-training", 1e-3),
}
# Haiku's name of each entry -> PyLO's.
PYLO = {"b0": "b0", "w1": "dense_w.0", "b1": "dense_b.0", "w2": "dense_w.1", "b2": "dense_b.1"}
PYLO |= {f"w0__{i}": f"w0.{i}" for i in range(len(haiku.GROUPS))}


def recognizes(arrays: Arrays) -> bool:
    """Whether there is a per-parameter network, under its haiku names or PyLO's."""
    return any(path.startswith((haiku.NETWORK, "w0.", "dense_")) for path in arrays)


def convert(
    arrays: Arrays,
    *,
    variant: str | None = None,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
) -> ImportedWeights:
    """Converts to theta of the family celo2.

    Only the first output of the network is kept: the reference multiplies the others by zero.

    Args:
      arrays: entries of the file.
      variant: "celo2", "base" or "elo". For ELO-Celo2, clip the gradients to norm 1.
      learning_rate: step size, the user's choice; meta-training used 0.001.
      weight_decay: None for the variant's own, 0.1 for "elo" and 0 for the others.

    Raises:
      UserError: if an option is missing, ``variant`` is unknown, or an entry does not fit.
    """
    if not any(path.startswith(haiku.NETWORK) for path in arrays):
        hidden = size(arrays, "b0", 0)
        check(arrays, {PYLO[p.removeprefix(haiku.NETWORK)]: s for p, s in haiku.network_shapes((), hidden).items()})
        arrays = {haiku.NETWORK + ours: arrays[theirs] for ours, theirs in PYLO.items()}
    hidden = size(arrays, haiku.NETWORK + "b0", 0)
    check(arrays, haiku.network_shapes((), hidden))
    if variant is not None and variant not in VARIANTS:
        raise unknown("variant of Celo2", str(variant), VARIANTS)
    require({"variant": variant, "learning_rate": learning_rate}, QUESTIONS)
    config = {"hidden": hidden, "learning_rate": learning_rate, **VARIANTS[str(variant)]}
    config |= {} if weight_decay is None else {"weight_decay": weight_decay}
    return ImportedWeights("celo2", config, {"network": haiku.network(arrays, 1)})
