"""Replaces several files of a folder at once: a crash at any moment leaves all of the old ones or all of the new ones.

All are written beside their places. The first is then put in its place in one step, and from that
moment the new ones count: whoever reads the first finds the others in their places or beside them.
"""

import contextlib
import os
from pathlib import Path


def unfinished(path: Path) -> Path:
    """Where a file lies until it is put in its place."""
    return path.with_name(path.name + ".unfinished")


def replace(folder: Path, files: dict[str, bytes]) -> None:
    """Replaces files, by name; the first is the one that counts.

    Raises:
      OSError: if they cannot be written; then the old ones are as they were.
    """
    first, *others = [folder / name for name in files]
    try:
        for name, data in files.items():
            _write(unfinished(folder / name), data)
        unfinished(first).replace(first)
    except OSError:
        for path in (first, *others):
            unfinished(path).unlink(missing_ok=True)
        raise
    _wait_for_disk(folder)
    for path in others:
        unfinished(path).replace(path)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _wait_for_disk(folder: Path) -> None:
    """Returns when the disk has the names in a folder, so that no later renaming overtakes an earlier one."""
    with contextlib.suppress(OSError):  # file systems that cannot say
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
