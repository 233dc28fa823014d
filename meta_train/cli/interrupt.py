"""Ctrl-C ends a command at once and in one line, wherever it is.

A KeyboardInterrupt would not do: libraries swallow it while they are imported, and none is raised as long as JAX
compiles or computes. What a command has measured is on disk whenever it may be killed, so nothing is lost.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

INTERRUPTED = 128 + signal.SIGINT  # exit code, as a shell has it

_hints: list[str] = []  # what is said besides, the last one counts


def end_process_at_once() -> None:
    """From now on the process ends at a SIGINT, unless somebody else handles it, as a run does."""

    def handler(*_: object) -> None:
        """Does nothing: it runs when the main thread is back in Python, which may take a minute."""

    def wait() -> None:
        while number := os.read(read_end, 1):
            if number[0] == signal.SIGINT and signal.getsignal(signal.SIGINT) is handler:
                say()
                os._exit(INTERRUPTED)

    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end)
    signal.signal(signal.SIGINT, handler)
    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def saying(hint: str) -> Iterator[None]:
    """What an interrupted command says besides while this lasts."""
    _hints.append(hint)
    try:
        yield
    except Exception:
        _hints.pop()
        raise
    _hints.pop()


def say() -> None:
    """Prints the line, below what stands on a terminal."""
    with contextlib.suppress(OSError):
        start = "\n" if sys.stderr.isatty() else ""
        print(f"{start}metaopt: interrupted{'; ' + _hints[-1] if _hints else ''}", file=sys.stderr, flush=True)
    _hints.clear()
