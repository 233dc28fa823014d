"""The parts of an evaluation, joined: what ``metaopt merge`` does."""

import json
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from meta_train.evaluation.evaluate import PARTS
from metaopt.errors import UserError
from metaopt.evaluation import report

OF_A_PART = ("part", "of", "options")  # what the header of a part says more than that of the whole


def merge(folder: Path) -> str:
    """Writes ``results.jsonl`` as an evaluation in one go would have written it.

    Returns:
      The name of the checkpoint, as the parts were asked for.

    Raises:
      UserError: if a part is missing, damaged or of another evaluation.
    """
    parts = sorted((_read(path) for path in (folder / PARTS).glob("*.jsonl")), key=lambda part: part.header["part"])
    if not parts:
        raise UserError(f"{folder} holds no parts: make them with metaopt evaluate NAME --out {folder} --part I")
    for part in parts:
        _check_same(parts[0], part)
    first = parts[0].header
    if missing := sorted(set(range(first["of"])) - {part.header["part"] for part in parts}):
        command = f"metaopt evaluate {shlex.join(first['options'])} --out {folder} --part I"
        named = ",".join(map(str, missing))
        raise UserError(f"{folder} lacks {len(missing)} of {first['of']} parts: make I={named} with: {command}")
    whole = {name: value for name, value in first.items() if name not in OF_A_PART}
    whole["device"] = ", ".join(sorted({part.header["device"] for part in parts}))
    lines = [json.dumps(whole), *(row for part in parts for row in part.rows)]
    (folder / report.RESULTS).write_text("".join(line + "\n" for line in lines))
    return first["options"][0]


class _Part(NamedTuple):
    path: Path
    header: dict[str, Any]
    rows: list[str]  # lines of JSON, as they are


def _read(path: Path) -> _Part:
    try:
        first, *rows = path.read_text().splitlines()
        header = json.loads(first)
        if not all(name in header for name in OF_A_PART):
            raise ValueError("its first line is not that of a part")
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; make this part again") from error
    return _Part(path, header, rows)


def _check_same(ours: _Part, theirs: _Part) -> None:
    """Whether two parts are of one evaluation; only the device may be another."""
    for name, value in ours.header.items():
        if name not in ("part", "device") and theirs.header.get(name) != value:
            raise UserError(
                f"{theirs.path} is of another evaluation than {ours.path}: {name} {theirs.header.get(name)} and not "
                f"{value}; remove what is left of the other one"
            )
