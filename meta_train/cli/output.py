"""Standard output of a command: what is wrong with it is said, and names print in any encoding."""

import contextlib
import io
import os
from typing import Any, TextIO

from metaopt.errors import UserError


class Output:
    """In the place of ``sys.stdout``, which may be None where it was closed.

    Writing raises UserError where the disk is full, BrokenPipeError where nobody reads any more. Letters that
    the encoding does not have become escapes.
    """

    def __init__(self, stream: TextIO | None):
        self._stream = stream or io.StringIO()
        if isinstance(self._stream, io.TextIOWrapper):
            self._stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            raise _named(error) from error

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            raise _named(error) from error

    def end(self) -> None:
        """Writes what is left; if that fails, it goes nowhere, and Python's own last flush does not fail again."""
        try:
            self._stream.flush()
        except OSError:
            with contextlib.suppress(OSError):  # no file may be behind it
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _named(error: OSError) -> Exception:
    if isinstance(error, BrokenPipeError):
        return error
    return UserError(f"cannot write to standard output: {error.strerror}")
