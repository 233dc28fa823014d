"""The result of an import."""

from typing import Any, NamedTuple

from metaopt.core import Theta


class ImportedWeights(NamedTuple):
    """A family's name, its settings and its theta, as ``checkpoint.save`` takes them."""

    family: str
    config: dict[str, Any]
    theta: Theta  # leaves are NumPy arrays
