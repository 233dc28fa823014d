"""What the processes of a run say to each other. A single process talks to itself, at no cost."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from metaopt.errors import UserError

MESSAGE_BYTES = 4096  # every process has to know the length of what it will hear


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def largest(number: int) -> int:
    """The largest ``number`` of any process; all have to call this."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def on_first(f: Callable[[], Any]) -> Any:
    """``f()``, done by the first process and told to all; all have to call this.

    Args:
      f: returns what JSON can say, in less than 4 kB.

    Raises:
      UserError: in every process, if ``f`` raised one in the first.
    """
    if jax.process_count() == 1:
        return f()
    value, error = None, None
    if is_first():
        try:
            value = f()
        except Exception as raised:  # of any kind: the others wait for an answer
            error = raised
    # Cut, so that it fits even where JSON takes six bytes for a character.
    told = _tell({"value": value, "error": str(error)[:600] if error else None})
    if error:
        raise error
    if told["error"] is not None:
        raise UserError(told["error"])
    return told["value"]


def is_loss(error: Exception) -> bool:
    """Whether ``error`` says that another process is gone, whatever was being done together."""
    return isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)


def _tell(message: dict) -> dict:
    text = json.dumps(message).encode()
    buffer = np.zeros(MESSAGE_BYTES, np.uint8)
    buffer[: len(text)] = np.frombuffer(text, np.uint8)
    heard = np.asarray(multihost_utils.broadcast_one_to_all(buffer), np.uint8)
    return json.loads(heard.tobytes().rstrip(b"\0"))
