"""Communication between the processes of a run; a single process does not communicate at all."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from metaopt.errors import UserError

MESSAGE_BYTES = 4096  # fixed length of a broadcast, because all processes have to know it beforehand


def is_first() -> bool:
    """Whether this is the first process, which writes files and prints."""
    return jax.process_index() == 0


def largest(number: int) -> int:
    """The largest ``number`` of all processes; all processes have to call this."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def on_first(f: Callable[..., Any], *args: Any) -> Any:
    """Calls ``f(*args)`` on the first process and broadcasts the result; all processes have to call this.

    Args:
      f: function whose result is a JSON value of less than 4 kB.
      args: arguments of ``f``.

    Raises:
      UserError: on every process, if ``f`` raised an exception on the first.
    """
    if jax.process_count() == 1:
        return f(*args)
    value, error = None, None
    if is_first():
        try:
            value = f(*args)
        except Exception as raised:  # any exception, because the other processes wait for the broadcast
            error = raised
    # Truncated, so that the message fits even if JSON takes six bytes for each character.
    answer = _broadcast({"value": value, "error": str(error)[:600] if error else None})
    if error:
        raise error
    if answer["error"] is not None:
        raise UserError(answer["error"])
    return answer["value"]


def is_lost_process(error: Exception) -> bool:
    """Whether ``error`` means that another process of the run is gone."""
    return isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)


def _broadcast(message: dict[str, Any]) -> dict[str, Any]:
    """The ``message`` of the first process, on every process."""
    text = json.dumps(message).encode()
    buffer = np.zeros(MESSAGE_BYTES, np.uint8)
    buffer[: len(text)] = np.frombuffer(text, np.uint8)
    received = np.asarray(multihost_utils.broadcast_one_to_all(buffer), np.uint8)
    return json.loads(received.tobytes().rstrip(b"\0"))
