"""Metrics of a run: ``metrics.jsonl`` with its mirrors."""

import itertools
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from meta_train.run.mirrors import Mirrors
from metaopt.errors import UserError


class Log:
    """Appends one JSON line for each outer step; the steps increase.

    Opening the log of a run that is resumed at step ``start`` deletes the rows of later steps,
    which were not saved and will be computed again. The mirrors of the run, see
    ``meta_train.run.mirrors``, get every row as well.
    """

    def __init__(self, run_dir: Path, start: int):
        self._path = run_dir / "metrics.jsonl"
        rows = self._path.read_text().splitlines(keepends=True) if self._path.exists() else []
        kept = list(itertools.takewhile(lambda row: _step(row) <= start, rows))
        if kept != rows:
            shortened = self._path.with_suffix(".tmp")
            shortened.write_text("".join(kept))
            shortened.replace(self._path)  # atomic: no row is lost if the process is killed here
        self._file = self._path.open("a", buffering=1)
        self._mirrors = Mirrors(run_dir, kept)

    def write(self, first_step: int, metrics: dict[str, np.ndarray], seconds: float) -> None:
        """Writes the metrics of a dispatch.

        Args:
          first_step: first outer step of the dispatch.
          metrics: name -> (steps,) values.
          seconds: duration of the dispatch.

        Raises:
          UserError: if the file cannot be written, e.g. because the disk is full.
        """
        rows, num_steps = [], len(next(iter(metrics.values())))
        for i in range(num_steps):
            # A value that is not finite becomes null: NaN is not JSON.
            row = {name: _number(values[i]) for name, values in metrics.items()}
            times = {"time": round(time.time(), 3), "seconds": _number(seconds / num_steps)}
            rows.append({"step": first_step + i, **times, **row})
        try:
            self._file.write("".join(json.dumps(row) + "\n" for row in rows))
        except OSError as error:
            raise UserError(
                f"cannot write to {self._path}: {error.strerror}; fix the cause, then continue with --resume"
            ) from error
        self._mirrors.write(rows)

    def close(self) -> None:
        self._file.close()
        self._mirrors.close()


def _step(row: str) -> float:
    """The outer step of a line of metrics.jsonl; infinity if the line is damaged or incomplete."""
    try:
        return json.loads(row)["step"] if row.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


def _number(value: Any) -> float | None:
    """Six digits; None if the value is not finite."""
    value = float(value)
    return float(f"{value:.6g}") if np.isfinite(value) else None
