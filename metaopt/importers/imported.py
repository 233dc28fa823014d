"""What an importer found in a file."""

from typing import Any, NamedTuple

from metaopt.core import Theta


class ImportedWeights(NamedTuple):
    """A family's name, its settings and its theta, as ``checkpoint.save`` takes them."""

    family: str
    config: dict[str, Any]
    theta: Theta  # of NumPy arrays
