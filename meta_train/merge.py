"""The parts of an evaluation, joined: what ``metaopt merge`` does."""

import json
import shlex
from pathlib import Path
from typing import Any

from meta_train.evaluate import PARTS
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
    paths = sorted((folder / PARTS).glob("*.jsonl"), key=lambda path: int(path.stem))
    if not paths:
        raise UserError(f"{folder} holds no parts: make them with metaopt evaluate NAME --out {folder} --part I")
    headers, rows = zip(*[_read(path) for path in paths], strict=True)
    for path, header in zip(paths, headers, strict=True):
        _check_same(paths[0], headers[0], path, header)
    first = headers[0]
    if missing := sorted(set(range(first["of"])) - {header["part"] for header in headers}):
        command = f"metaopt evaluate {shlex.join(first['options'])} --out {folder} --part I"
        named = ",".join(map(str, missing))
        raise UserError(f"{folder} lacks {len(missing)} of {first['of']} parts: make I={named} with: {command}")
    whole = {name: value for name, value in first.items() if name not in OF_A_PART}
    whole["device"] = ", ".join(sorted({header["device"] for header in headers}))
    lines = [json.dumps(whole), *(row for part in rows for row in part)]
    (folder / report.RESULTS).write_text("".join(line + "\n" for line in lines))
    return first["options"][0]


def _read(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The header of a part, and its rows as they are."""
    try:
        header, *rows = path.read_text().splitlines()
        return json.loads(header), rows
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; make this part again") from error


def _check_same(path: Path, ours: dict[str, Any], other: Path, theirs: dict[str, Any]) -> None:
    """Whether two parts are of one evaluation; only the device may be another."""
    for name in ours:
        if name not in ("part", "device") and ours[name] != theirs.get(name):
            raise UserError(
                f"{other} is of another evaluation than {path}: {name} {theirs.get(name)} and not {ours[name]}; "
                "remove what is left of the other one"
            )
