"""The shards of an evaluation, joined: what ``metaopt merge`` does."""

import json
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from meta_train.evaluation.evaluate import SHARDS
from metaopt.errors import UserError
from metaopt.evaluation import report

ONLY_SHARDS = ("shard", "of", "names", "options")  # what the header of a shard says more than that of the whole


def merge(folder: Path) -> list[str]:
    """Writes ``results.jsonl`` as an evaluation in one go would have written it.

    Returns:
      The names of checkpoints and runs, as the shards were asked for.

    Raises:
      UserError: if a shard is missing, damaged or of another evaluation.
    """
    shards = sorted(
        (_read(path) for path in (folder / SHARDS).glob("*.jsonl")), key=lambda shard: shard.header["shard"]
    )
    if not shards:
        raise UserError(f"{folder} holds no shards: make them with metaopt evaluate NAME --out {folder} --shard I")
    for shard in shards:
        _check_same(shards[0], shard)
    first = shards[0].header
    if missing := sorted(set(range(first["of"])) - {shard.header["shard"] for shard in shards}):
        command = f"metaopt evaluate {shlex.join(first['options'])} --out {folder} --shard I"
        named = ",".join(map(str, missing))
        raise UserError(f"{folder} lacks {len(missing)} of {first['of']} shards: make I={named} with: {command}")
    whole = {name: value for name, value in first.items() if name not in ONLY_SHARDS}
    whole["device"] = ", ".join(sorted({shard.header["device"] for shard in shards}))
    lines = [json.dumps(whole), *(row for shard in shards for row in shard.rows)]
    (folder / report.RESULTS).write_text("".join(line + "\n" for line in lines))
    return first["names"]


class _Shard(NamedTuple):
    path: Path
    header: dict[str, Any]
    rows: list[str]  # lines of JSON, as they are


def _read(path: Path) -> _Shard:
    try:
        first, *rows = path.read_text().splitlines()
        header = json.loads(first)
        if not all(name in header for name in ONLY_SHARDS):
            raise ValueError("its first line is not that of a shard")
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; make this shard again") from error
    return _Shard(path, header, rows)


def _check_same(ours: _Shard, theirs: _Shard) -> None:
    """Whether two shards are of one evaluation; only the device may be another."""
    for name, value in ours.header.items():
        if name not in ("shard", "device") and theirs.header.get(name) != value:
            raise UserError(
                f"{theirs.path} is of another evaluation than {ours.path}: {name} {theirs.header.get(name)} and not "
                f"{value}; remove what is left of the other one"
            )
