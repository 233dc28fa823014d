"""Errors a user can mend: one sentence that names the thing and the remedy."""

import difflib
from collections.abc import Iterable


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
