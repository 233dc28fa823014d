"""Errors a user can mend: one sentence that names the thing and the remedy."""

import difflib
import inspect
import math
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


def check_type(name: str, value: Any, default: object) -> None:
    """Raises UserError unless a setting is of the type of its default and in range; an int may stand for a float."""
    expected = type(default)
    if expected is float and type(value) is int:
        value = float(value) if abs(value) < LARGEST else math.inf
    if type(value) is not expected:
        raise UserError(f"{name} takes {expected.__name__}, got {value!r}")
    check_range(name, value)


def check_range(name: str, value: Any) -> None:
    """Raises UserError for a number that float32 or int32 cannot hold; of a collection for any entry."""
    if isinstance(value, dict):
        for key, entry in value.items():
            check_range(f"{name}.{key}", entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            check_range(name, entry)
    elif isinstance(value, float) and not abs(value) < LARGEST:  # so it is for NaN
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
    """Raises UserError for a keyword that is not known, of another type than its default, or out of range.

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
        if defaults[name] is not NO_DEFAULT and defaults[name] is not None:
            check_type(named, value, defaults[name])
        else:
            check_range(named, value)
