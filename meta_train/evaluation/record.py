"""Results of an evaluation in the manifests of its checkpoints: what ``--record`` does."""

import os
from collections.abc import Sequence
from pathlib import Path

import metaopt
from meta_train.run import directory
from metaopt import checkpoint
from metaopt.errors import UserError
from metaopt.evaluation import report
from metaopt.evaluation.comparison import label


def write(names: Sequence[str], folder: Path) -> list[Path]:
    """Writes the result of an evaluation into the manifest of every checkpoint in it, and returns their paths.

    Raises:
      UserError: if a checkpoint has other weights by now, or as ``check``.
    """
    header, _ = report.read(folder)
    check(names)
    for name in names:
        if header["weights_sha256"][label(name)] != checkpoint.read_manifest(name)["sha256"]:
            raise UserError(f"{folder} is of other weights than {name} has now: evaluate again")
    for name in names:
        checkpoint.record(name, results={header["suite"]: report.result(folder, label(name))})
    return [checkpoint.find(name) / checkpoint.MANIFEST for name in names]


def check(names: Sequence[str]) -> None:
    """Raises UserError for what has no manifest to write a result into: a run, or a checkpoint of an installed package.

    To be called before the work, too.
    """
    installed = Path(metaopt.__file__).parent / "checkpoints"  # in the tree they are elsewhere
    for name in names:
        if directory.is_run(name):
            raise UserError(f"{name} is a run and has no manifest: export it first, or leave out --record")
        path = checkpoint.find(name) / checkpoint.MANIFEST
        if path.is_relative_to(installed) or not all(os.access(place, os.W_OK) for place in (path, path.parent)):
            raise UserError(
                f"{path} is not yours to write: leave out --record, or copy its folder and evaluate the copy"
            )
