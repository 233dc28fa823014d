"""Errors a user can mend: one sentence that names the thing and the remedy."""

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

NO_DEFAULT = inspect.Parameter.empty
LARGEST = 3.4e38  # about the end of float32


class UserError(ValueError):
    """Bad input. The command line prints it without a traceback and exits with 2."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """An unknown name, with the nearest known one and the whole list."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UserError(f"unknown {kind} {name!r}{hint} (known: {', '.join(names) or 'none'})")


def check_type(name: str, value: object, default: object) -> None:
    """Raises UserError unless a setting is of the type of its default; an int may stand for a float."""
    expected = type(default)
    if type(value) is not expected and not (expected is float and type(value) is int):
        raise UserError(f"{name} takes {expected.__name__}, got {value!r}")
    check_range(name, float(value) if expected is float and -LARGEST < value < LARGEST else value)  # pyright: ignore


def check_range(name: str, value: Any) -> None:
    """Raises UserError for numbers that a device would not hold as they are: float32 and int32 have ends.

    Lists, tuples and dicts are checked entry by entry.
    """
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, list | tuple):
        for entry in value:
            check_range(name, entry)
    elif isinstance(value, float) and not abs(value) < LARGEST:  # NaN neither
        raise UserError(f"{name} must be finite and below {LARGEST:g}, got {value!r}")
    elif type(value) is int and abs(value) >= 2**31:
        raise UserError(f"{name} must be below 2^31, got {value!r}")


def keywords_of(function: Callable[..., Any], skip: int = 0) -> tuple[dict[str, Any], bool]:
    """What a function can be given by keyword.

    Args:
      function: any callable.
      skip: how many of its first parameters are left out.

    Returns:
      Names with their defaults, NO_DEFAULT where there is none; and whether it takes any other name too.
    """
    parameters = list(inspect.signature(function).parameters.values())[skip:]
    named = {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD}
    return named, len(named) < len(parameters)


def check_keywords(kind: str, given: dict[str, Any], defaults: dict[str, Any], any_name: bool = False) -> None:
    """Raises UserError for a keyword that is not known, or of another type than its default.

    Args:
      kind: what the keywords are, for messages, e.g. "setting of velo".
      given: keywords and their values.
      defaults: as ``keywords_of`` returns; a default of None says no type.
      any_name: whether other names are taken as well.
    """
    for name, value in given.items():
        if name not in defaults:
            if any_name:
                continue
            raise unknown(kind, name, defaults)
        named = f"{kind.rpartition(' ')[2]}: {name}"
        check_range(named, value)
        if defaults[name] is not NO_DEFAULT and defaults[name] is not None:
            check_type(named, value, defaults[name])
