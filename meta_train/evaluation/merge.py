"""The shards of an evaluation, joined: what ``metaopt merge`` does."""

import json
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from meta_train.evaluation.evaluate import SHARDS
from metaopt.errors import UserError
from metaopt.evaluation import results
from metaopt.evaluation.compare import Row

ONLY_SHARDS = ("shard", "of", "names", "options")  # what the header of a shard says more than that of the whole


def merge(folder: Path) -> list[str]:
    """Writes ``results.jsonl`` as an evaluation in one go would have written it.

    Returns:
      The names of checkpoints and runs, as the shards were asked for.

    Raises:
      UserError: if a shard is missing, damaged or of another evaluation, or the folder holds the results of another.
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
    whole["device"] = results.joined(*(shard.header["device"] for shard in shards))
    results.begin(folder, whole)  # refuses to replace the results of another evaluation
    results.write(folder, [whole, *(row for shard in shards for row in shard.rows)])
    return first["names"]


class _Shard(NamedTuple):
    path: Path
    header: dict[str, Any]
    rows: list[Row]


def _read(path: Path) -> _Shard:
    try:
        header, *rows = map(json.loads, path.read_text().splitlines())
        if not all(name in header for name in ONLY_SHARDS):
            raise ValueError("its first line is not that of a shard")
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; make this shard again") from error
    return _Shard(path, header, rows)


def _check_same(ours: _Shard, theirs: _Shard) -> None:
    """Whether two shards are of one evaluation; only the device may be another."""
    if different := results.difference(theirs.header, ours.header, ("device", "shard")):
        raise UserError(
            f"{theirs.path} is of another evaluation than {ours.path}: {different}; remove what is left of the other "
            "one"
        )
