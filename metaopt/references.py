"""Objects by reference: ``path/to/file.py:name``, ``package.module:name`` or ``package.module``.

What a registered name can stand for, a researcher's own object can stand for too. On the
command line and in a run directory it is written as a reference. Resolving one runs the file
it names: only what a user typed, or a run of theirs recorded, is ever resolved.
"""

import functools
import hashlib
import importlib.util
import os
import pkgutil
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from metaopt.errors import UserError, unknown

_FOLDERS: list[str] = []  # entries of sys.path that were added here


def is_reference(text: Any) -> bool:
    """Whether a text can only be a reference: registered names have no dot, colon or slash."""
    return isinstance(text, str) and any(mark in text for mark in ".:/")


def resolve(reference: str, default: str = "", search: Sequence[str | Path] = ()) -> Any:
    """The object that a reference names.

    Args:
      reference: ``path/to/file.py:name``, ``package.module:name``, or without a name.
      default: the name to take where the reference has none; "" is the module itself.
      search: folders in which imports are looked for when they are not found elsewhere, besides
        the working directory and the folder of the file.

    Raises:
      UserError: if there is no such file, module or name, or the file fails to run; the message
        says which, and where it failed.
    """
    place, name = split(reference)
    if place.endswith(".py"):
        module: Any = load_file(Path(place), (*search, Path.cwd()))
    else:
        for folder in (*search, Path.cwd()):
            _import_from(folder)
        module = _import(place, reference)
    return attribute(module, name or default, place)


def attribute(module: Any, name: str, place: str) -> Any:
    """What has a dotted name in a module; the module itself where the name is "".

    Raises:
      UserError: naming the nearest, if there is none; ``place`` is where it was looked for.
    """
    if not name or not isinstance(module, ModuleType):
        return module
    found: Any = module
    for step in name.split("."):
        if not hasattr(found, step):
            raise unknown(
                f"name in {place}", step, [n for n in getattr(found, "__dict__", {}) if not n.startswith("_")]
            )
        found = getattr(found, step)
    return found


def split(reference: str) -> tuple[str, str]:
    """A reference as (file or module, name); the name is "" where there is none."""
    head, colon, tail = reference.rpartition(":")
    return (head, tail) if colon and "/" not in tail and not tail.endswith(".py") else (reference, "")


def absolute(reference: str) -> str:
    """The same reference with the path of its file made absolute, so that it holds in any working directory."""
    place, name = split(reference)
    if not place.endswith(".py"):
        return reference
    return os.path.abspath(Path(place).expanduser()) + (f":{name}" if name else "")


def folder_of(reference: str) -> Path:
    """The folder to search for a reference's imports: that of its file, or of its topmost package.

    Raises:
      UserError: as ``resolve``.
    """
    place, _ = split(reference)
    if place.endswith(".py"):
        return Path(absolute(place)).parent
    resolve(reference)
    file = getattr(sys.modules[place.partition(".")[0]], "__file__", None)
    if file is None:
        return Path.cwd()
    return Path(file).resolve().parents[1 if Path(file).name == "__init__.py" else 0]


def file_of(reference: str) -> Path:
    """The file that a reference's object is in. Raises UserError as ``resolve``."""
    place, _ = split(reference)
    if place.endswith(".py"):
        return Path(absolute(place))
    resolve(reference)
    file = getattr(sys.modules[place], "__file__", None)
    if file is None:
        raise UserError(f"{reference!r} is in no file")
    return Path(file)


def load_file(path: Path, search: Sequence[str | Path] = ()) -> ModuleType:
    """Runs a Python file as a module, once a process. Raises UserError if it cannot.

    ``search`` as for ``resolve``.
    """
    path = Path(os.path.abspath(path.expanduser()))
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    for folder in search:
        _import_from(folder)
    _import_first_from(path.parent)
    return _run(path)


@functools.cache
def _run(path: Path) -> ModuleType:
    # A name of its own: two files called my_tasks.py are two modules.
    name = f"{path.stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    if name in sys.modules:
        raise UserError(f"{path} refers to itself: name the object there in the place of the reference")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except UserError:
        sys.modules.pop(name, None)
        raise
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        raise UserError(f"{_place_of(error, path)}: {type(error).__name__}: {error}") from error
    return module


def _import(place: str, reference: str) -> Any:
    try:
        return pkgutil.resolve_name(place)
    except ModuleNotFoundError as error:
        top = place.partition(".")[0]
        if error.name and error.name.partition(".")[0] == top:
            raise UserError(
                f"{reference!r} names the module {error.name!r}, which cannot be found: install it, add its folder to "
                "PYTHONPATH, or give a file as path/to/file.py:name"
            ) from error
        raise UserError(f"{reference!r} cannot be imported: {error}") from error
    except AttributeError as error:
        raise UserError(f"{reference!r} cannot be found: {error}") from error
    except ValueError as error:
        raise UserError(
            f"{reference!r} is no reference: write path/to/file.py:name, package.module:name or package.module"
        ) from error
    except Exception as error:
        raise UserError(f"{reference!r} cannot be imported: {type(error).__name__}: {error}") from error


def _place_of(error: BaseException, path: Path) -> str:
    """``file, line`` of an error that running ``path`` raised."""
    if isinstance(error, SyntaxError):
        return f"{path}, line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{path}, line {lines[-1]}" if lines else str(path)


def _import_from(folder: str | Path) -> None:
    """Lets imports be found in ``folder`` where they are found nowhere else: it shadows no package."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
        _FOLDERS.append(str(folder))


def _import_first_from(folder: Path) -> None:
    """Of the folders that were added here, looks into ``folder`` first: its files are those that its imports find.

    A module of the same name from another folder makes room; whoever has imported that one keeps it.
    """
    for name, module in list(sys.modules.items()):
        file = Path(getattr(module, "__file__", None) or "")
        is_other = str(file.parent) in _FOLDERS and file.parent != folder
        if is_other and "." not in name and (folder / f"{name}.py").is_file():
            del sys.modules[name]
    if str(folder) not in sys.path or str(folder) in _FOLDERS:
        sys.path[:] = [place for place in sys.path if place not in _FOLDERS]
        _FOLDERS[:] = [str(folder), *(other for other in _FOLDERS if other != str(folder))]
        sys.path.extend(_FOLDERS)
