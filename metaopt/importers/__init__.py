"""Weights that other projects released, as theta of our families.

A file is untrusted: nothing in it is run, and no claim in it is believed before it has
been compared with the length of the file. Two questions are answered one after the
other, both from the content: what container it is (``files.CONTAINERS``) and whose
weights it holds (SOURCES).
"""

import inspect
from pathlib import Path
from typing import Any

from metaopt import checkpoint
from metaopt.errors import UserError, unknown
from metaopt.importers import celo, celo2, files, released, small_fc, velo
from metaopt.importers import open as open_
from metaopt.importers.imported import ImportedWeights

# celo2 has the fewest marks of its own and stands after those that share them.
SOURCES = {"small_fc": small_fc, "celo": celo, "velo": velo, "celo2": celo2, "open": open_}
OPTIONS = {name: inspect.getfullargspec(source.convert).kwonlyargs for name, source in SOURCES.items()}


def read(path: str | Path, **options: Any) -> ImportedWeights:
    """Reads released weights.

    Args:
      path: of a file; its name does not matter.
      options: what the file does not say, as ``convert`` of its source takes it, e.g.
        ``decays="mulo"`` or ``variant="elo"``.

    Returns:
      (family, config, theta), theta of float32 NumPy arrays that are all finite.

    Raises:
      UserError: naming the file, and the entry that is missing, unknown or of another
        shape, the import that is refused, or the option that must be given.
    """
    return _convert(files.read(Path(path)), path, options)


def import_file(path: str | Path, name: str | Path, licence: str | None = None, **options: Any) -> Path:
    """Turns released weights into a checkpoint that ``metaopt.load`` knows.

    Args:
      path, options: as for ``read``.
      name: as for ``checkpoint.save``.
      licence: of the weights; not given, that of a file known by its sha256, else "unknown".

    Returns:
      The folder of the checkpoint.

    Raises:
      UserError: as ``read`` and ``checkpoint.save``.
    """
    if name in checkpoint.list_pretrained() or (Path(name) / checkpoint.MANIFEST).exists():
        raise UserError(f"there is a checkpoint {name} already: choose another name, or remove it first")
    file = files.read(Path(path))
    found = _convert(file, path, options)
    known = released.KNOWN.get(file.sha256, {"summary": f"imported from {Path(path).name}", "licence": "unknown"})
    about = known | ({"licence": licence} if licence else {})
    chosen = {option: str(value) if isinstance(value, Path) else value for option, value in options.items()}
    source = {"file": Path(path).name, "sha256": file.sha256, "format": file.container, "options": chosen}
    return checkpoint.save(name, found.family, found.config, found.theta, **about, source=source)


def _convert(file: files.File, path: str | Path, options: dict[str, Any]) -> ImportedWeights:
    name = next((name for name, source in SOURCES.items() if source.recognizes(file.arrays)), None)
    if name is None:
        some = ", ".join(repr(entry[:80]) for entry in list(file.arrays)[:5])
        raise UserError(f"{path} ({file.container}) holds weights of none of {', '.join(SOURCES)}; it has {some}")
    try:
        for option in options:
            if option not in OPTIONS[name]:
                raise unknown("option", option, OPTIONS[name])
        return SOURCES[name].convert(file.arrays, **options)
    except UserError as error:
        raise UserError(f"{path} ({name} weights): {error}") from error
