"""Settings from a gin file, read without gin: lines ``Class.name = literal``."""

import ast
from pathlib import Path
from typing import Any

from metaopt.errors import UserError

MAX_BYTES = 2**20


def read(path: str | Path, class_name: str) -> dict[str, Any]:
    """The literals that are set for one class, by setting; scopes and modules before its name are ignored.

    >>> read("config.gin", "HyperV2")  # doctest: +SKIP
    {'lstm_hidden_size': 512, 'param_inits': 256, 'use_bugged_loss_features': False}

    Raises:
      UserError: if there is no such file, or a value is not a literal.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    settings = {}
    for line in text.replace("\\\n", " ").splitlines():  # a backslash continues a line
        target, _, value = line.partition("#")[0].partition("=")
        owner, _, name = target.strip().rpartition(".")
        if owner.rsplit("/")[-1].rsplit(".")[-1] == class_name:
            try:
                settings[name] = ast.literal_eval(value.strip())
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
                raise UserError(f"{path}: {target.strip()} is not a number, a name or a tuple of such") from error
    return settings
