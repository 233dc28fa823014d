"""The file of an evaluation, ``results.jsonl``: a header, then the rows of every method on every problem.

Rows are appended as they are measured. A process that is killed leaves an unfinished last line at worst,
and the same evaluation goes on from there.
"""

import collections
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metaopt.errors import UserError
from metaopt.evaluation.compare import RESULTS, Row

Header = dict[str, Any]
ENTRIES = ("title", "learned", "reference", "num_steps", "seeds", "novelty")  # of a header, what a report needs
COLUMNS = {  # of a row, by its phase
    "tuning": {"task", "draw", "method", "rate", "final_valid"},
    "report": {"task", "draw", "method", "rate", "rate_at_edge", "seed", "diverged", "train", "valid", "test"},
}


def read(folder: Path) -> tuple[Header, list[Row]]:
    """The header and the rows, without a last line that is unfinished.

    Raises:
      UserError: if the file is missing or damaged.
    """
    path = folder / RESULTS
    if not path.is_file():
        raise UserError(f"{folder} holds no results: {RESULTS} is {'no file' if path.exists() else 'missing'}")
    lines = []
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
        for number, text in enumerate(texts, 1):
            try:
                lines.append(json.loads(text))
            except ValueError as error:
                if not 1 < number == len(texts):
                    raise ValueError(f"line {number}: {error}") from error
        header, *rows = lines or [None]
        _check(header, rows)
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; mend it, or move it away to measure anew") from error
    return header, rows


def begin(folder: Path, header: Header) -> list[Row]:
    """Begins the file of an evaluation, or goes on with what is left of an interrupted one.

    Args:
      folder: folder of the evaluation.
      header: header of the evaluation.

    Returns:
      The rows that are there already, of every tuning and every report that was finished.

    Raises:
      UserError: if the folder holds results of another evaluation, which stay.
    """
    path = folder / RESULTS
    if not path.exists() or path.is_file() and not path.stat().st_size:
        write(folder, [header])
        return []
    old, rows = read(folder)
    if different := difference(old, header):
        raise UserError(
            f"{path} is of another evaluation than is asked for: {different}; choose another folder with --out, or "
            "move that file away to measure anew"
        )
    counts = collections.Counter(map(_block, rows))
    rows = [row for row in rows if counts[_block(row)] == _size(header, row)]
    write(folder, [old | {"device": joined(old["device"], header["device"])}, *rows])
    return rows


def append(folder: Path, row: Row) -> None:
    """Adds a row. Raises UserError if it cannot be written, e.g. because the disk is full."""
    try:
        with (folder / RESULTS).open("a") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as error:
        raise UserError(
            f"cannot write to {folder / RESULTS}: {error.strerror}; fix the cause, then the same command continues"
        ) from error


def write(folder: Path, lines: Sequence[Any]) -> None:
    """Writes the whole file, at once: whatever happens, either the old one is there or the new one."""
    unfinished = folder / f"{RESULTS}.tmp"
    try:
        unfinished.write_text("".join(json.dumps(line) + "\n" for line in lines))
        unfinished.replace(folder / RESULTS)
    except OSError as error:
        raise UserError(f"cannot write {folder / RESULTS}: {error.strerror}") from error


def difference(header: Header, other: Header, may_differ: Sequence[str] = ("device",)) -> str:
    """What differs first between the headers of two evaluations, e.g. "seeds 2 and not 3"; "" if nothing does."""
    mine, theirs = json.loads(json.dumps(header)), json.loads(json.dumps(other))
    for name in dict.fromkeys([*theirs, *mine]):
        if name not in may_differ and mine.get(name) != theirs.get(name):
            return f"{name} {mine.get(name)} and not {theirs.get(name)}"
    return ""


def joined(*devices: str) -> str:
    """The devices of an evaluation that was measured on several kinds."""
    return ", ".join(sorted({name for device in devices for name in device.split(", ")}))


def missing(header: Header, rows: Sequence[Row]) -> list[str]:
    """What is not measured yet, a text for each method and task. Nothing where a header does not say what was asked."""
    found = {_block(row) for row in finished(header, rows)}
    texts = []
    for task in header.get("tasks", ()):
        for method in header["methods"]:
            draws = range(header["draws"])
            lacking = [draw for draw in draws if ("report", task, draw, method) not in found]
            if len(lacking) == len(draws):
                texts.append(f"{method} on {task}")
            elif lacking:
                texts.append(f"{method} on {task} #{', #'.join(map(str, lacking))}")
    return texts


def finished(header: Header, rows: Sequence[Row]) -> list[Row]:
    """The rows of every report that has all its seeds."""
    counts = collections.Counter(map(_block, rows))
    return [row for row in rows if row["phase"] == "report" and counts[_block(row)] == header["seeds"]]


def _block(row: Row) -> tuple[str, str, int, str]:
    """What is measured together with a row."""
    return row["phase"], row["task"], row["draw"], row["method"]


def _size(header: Header, row: Row) -> int:
    return header["seeds"] if row["phase"] == "report" else len(header["rates"].get(row["method"], ()))


def _check(header: Any, rows: list[Any]) -> None:
    """Raises ValueError for lines that are not those of an evaluation."""
    for name in ENTRIES:
        if not isinstance(header, dict) or name not in header:
            raise ValueError(f"its header lacks {name!r}")
    for number, row in enumerate(rows, 2):
        phase = str(row.get("phase")) if isinstance(row, dict) else ""
        if phase not in COLUMNS or not COLUMNS[phase] <= row.keys():
            raise ValueError(f"line {number} is no row of an evaluation")
