"""How a command ends: its exit code, and one line for whatever its user can mend."""

import contextlib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable

import jax

from meta_train.cli.output import Output
from metaopt.errors import UserError

TO_MEND = 2  # exit code: the line on stderr says what to change, another attempt would not help
UNREAD = 128 + signal.SIGPIPE  # exit code, as a shell has it: whoever read the output has gone
# What a user can change. With others, as of a disk that is disconnected, another attempt may help.
MENDABLE = (
    errno.EACCES, errno.EDQUOT, errno.EEXIST, errno.EFBIG, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG,
    errno.ENOENT, errno.ENOSPC, errno.ENOTDIR, errno.ENOTEMPTY, errno.EPERM, errno.EROFS,
)  # fmt: skip


def run(command: Callable[[], int]) -> int:
    """Runs a command with a guarded standard output, and returns its exit code.

    Raises:
      Exception: what no user can mend, for a traceback.
    """
    stdout = sys.stdout
    output = sys.stdout = Output(stdout)
    try:
        try:
            code = command()
        except SystemExit:  # --help has printed
            output.flush()
            raise
        output.flush()
        return code
    except UserError as error:
        say(str(error))
        return TO_MEND
    except BrokenPipeError:  # as of ``metaopt list | head -1``
        return _leave(UNREAD)
    except Exception as error:
        if message := sentence(error):
            say(message)
            return _leave(TO_MEND)
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        return _leave(1)
    finally:
        output.end()
        sys.stdout = stdout


def say(message: str) -> None:
    """One line on standard error, which may be as broken as standard output."""
    with contextlib.suppress(OSError):
        print(f"metaopt: {' '.join(message.splitlines())}", file=sys.stderr, flush=True)


def sentence(error: Exception) -> str | None:
    """What a user can do about an error that no code foresaw; None if nothing."""
    if isinstance(error, OSError) and error.errno in MENDABLE:
        name = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return f"{name}{error.strerror}; choose another name or folder, or free some space"
    if isinstance(error, UnicodeEncodeError):
        return f"the encoding here, {error.encoding}, lacks a letter of a name: set PYTHONUTF8=1, or rename it"
    is_of_device = isinstance(error, jax.errors.JaxRuntimeError)
    if isinstance(error, MemoryError) or is_of_device and "out of memory" in str(error).lower():
        return "the memory does not suffice: ask for fewer or smaller things at once"
    return None


def _leave(code: int) -> int:
    """Of several processes one that fails ends at once: the usual way out waits for all, also for one that is lost."""
    if jax.distributed.is_initialized():
        sys.stderr.flush()
        os._exit(code)
    return code
