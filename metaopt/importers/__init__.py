"""Weights that other projects released, converted to theta of our families.

A file is untrusted: nothing in it is executed, and no size it claims is believed before it has
been compared with the length of the file. Both the file format (``files.CONTAINERS``) and the
project the weights come from (SOURCES) are recognized by the content alone.
"""

import inspect
from pathlib import Path
from typing import Any

from metaopt import checkpoint
from metaopt.errors import UserError, unknown
from metaopt.importers import celo, celo2, disco, files, released, small_fc, velo
from metaopt.importers import open as open_
from metaopt.importers.imported import ImportedWeights
from metaopt.importers.questions import Unanswered, command

# The first source that recognizes a file converts it: celo2 would recognize files of celo and velo too.
SOURCES = {"small_fc": small_fc, "celo": celo, "velo": velo, "celo2": celo2, "disco": disco, "open": open_}
OPTIONS = {name: inspect.getfullargspec(source.convert).kwonlyargs for name, source in SOURCES.items()}


def read(path: str | Path, **options: Any) -> ImportedWeights:
    """Reads released weights.

    Args:
      path: path of the file; its name does not matter.
      options: settings that the file does not hold, keywords of its source's ``convert``, e.g.
        ``decays="mulo"`` or ``variant="elo"``.

    Returns:
      The weights; theta consists of finite float32 NumPy arrays.

    Raises:
      UserError: naming the file, and the entry that is missing, unknown or of the wrong
        shape, the import that is refused, or the option that must be given.
    """
    return _convert(files.read(Path(path)), path, options, ["metaopt", "import", path, "--as", "NAME"])


def import_file(
    path: str | Path, name: str | Path, licence: str | None = None, overwrite: bool = False, **options: Any
) -> Path:
    """Converts released weights to a checkpoint that ``metaopt.load`` can load.

    Args:
      path, options: see ``read``.
      name: name or folder of the new checkpoint, see ``checkpoint.save``.
      licence: licence of the weights; None for the one in ``released.KNOWN``, else "unknown".
      overwrite: whether a checkpoint of this name may be replaced.

    Returns:
      The folder of the checkpoint.

    Raises:
      UserError: if there is such a checkpoint already, or as ``read`` and ``checkpoint.save`` do.
    """
    if name in checkpoint.list_pretrained() and not overwrite:  # a shipped one would be hidden by it
        raise UserError(f"there is a checkpoint {name} already: choose another name, or pass overwrite (--overwrite)")
    file = files.read(Path(path))
    words = ["metaopt", "import", path, "--as", name, *(["--licence", licence] if licence else [])]
    weights = _convert(file, path, options, words)
    known = released.KNOWN.get(file.sha256, {"summary": f"imported from {Path(path).name}", "licence": "unknown"})
    about = known | ({"licence": licence} if licence else {})
    as_json = {option: str(value) if isinstance(value, Path) else value for option, value in options.items()}
    source = {"file": Path(path).name, "sha256": file.sha256, "format": file.container, "options": as_json}
    return checkpoint.save(
        name, weights.family, weights.config, weights.theta, overwrite=overwrite, **about, source=source
    )


def _convert(file: files.File, path: str | Path, options: dict[str, Any], words: list[Any]) -> ImportedWeights:
    """Converts the entries of a file; ``words`` begin the command that a message gives as an example."""
    name = next((name for name, source in SOURCES.items() if source.recognizes(file.arrays)), None)
    if name is None:
        some = ", ".join(repr(entry[:80]) for entry in list(file.arrays)[:5])
        raise UserError(f"{path} ({file.container}) holds weights of none of {', '.join(SOURCES)}; it has {some}")
    try:
        for option in options:
            if option not in OPTIONS[name]:
                raise unknown("option", option, OPTIONS[name])
        return SOURCES[name].convert(file.arrays, **options)
    except Unanswered as error:
        example = command(words, options | error.example)
        raise UserError(f"{path} ({name} weights): {error}; e.g. {example}") from error
    except UserError as error:
        raise UserError(f"{path} ({name} weights): {error}") from error
