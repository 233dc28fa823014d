"""Mirrors: copies of the metrics of a run in wandb or TensorBoard, in addition to ``metrics.jsonl``.

``mirrors.json`` in a run directory holds the names of its mirrors and the last step that was
written to each. When a run is resumed, a mirror gets the rows of metrics.jsonl that it lacks,
and no step twice.
"""

import contextlib
import importlib.util
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from metaopt.errors import UserError

Row = dict[str, Any]  # one line of metrics.jsonl
TIMES = ("step", "time", "seconds")  # entries of a row that are not metrics
FILE, WANDB_ID = "mirrors.json", "wandb_id"


class Wandb:
    """A wandb run in ``RUN/wandb``, offline unless WANDB_MODE says otherwise.

    The file ``wandb_id`` holds its id, which stays the same when the run is resumed.
    """

    def __init__(self, run_dir: Path):
        import wandb  # imported here because it takes a second

        path = run_dir / WANDB_ID
        if not path.exists():
            path.write_text(secrets.token_hex(4) + "\n")
        self._run = wandb.init(
            id=path.read_text().strip(),
            resume="allow",
            # Offline by default: on a node without internet, wandb would wait for minutes.
            mode=os.environ.get("WANDB_MODE", "offline"),  # pyright: ignore[reportArgumentType]
            project=os.environ.get("WANDB_PROJECT", "metaopt"),
            name=run_dir.resolve().name,
            dir=run_dir,
            config=json.loads((run_dir / "config.json").read_text())["recipe"],
            settings=wandb.Settings(console="off", quiet=True),
        )

    def write(self, rows: list[Row]) -> None:
        """Writes rows of metrics.jsonl."""
        for row in rows:
            self._run.log(_values(row), step=row["step"])

    def close(self) -> None:
        import wandb

        try:
            self._run.finish()
        finally:
            wandb.teardown()  # else it prints a traceback at exit if a signal has ended its helper process


class TensorBoard:
    """Event files in ``RUN/tensorboard``: one for the start of the run, and one for every resume.

    It does not use SummaryWriter, which writes in a thread: if the disk is full, that thread
    dies and the run waits forever.
    """

    def __init__(self, run_dir: Path):
        from tensorboardX.event_file_writer import EventsWriter

        folder = run_dir / "tensorboard"
        folder.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), f".{len(list(folder.iterdir()))}")

    def write(self, rows: list[Row]) -> None:
        """Writes rows of metrics.jsonl."""
        from tensorboardX.proto import event_pb2

        for row in rows:
            event = event_pb2.Event(wall_time=row["time"], step=row["step"])  # pyright: ignore[reportAttributeAccessIssue]
            for name, value in _values(row).items():
                event.summary.value.add(tag=name, simple_value=value)
            self._writer.write_event(event)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


KINDS = {"tensorboard": TensorBoard, "wandb": Wandb}
_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


def check(name: str) -> None:
    """Raises UserError if the package that the mirror needs is not installed."""
    package = _PACKAGES[name]
    if importlib.util.find_spec(package) is None:
        raise UserError(f"--log {name} needs {package}, which is not installed: pip install {package}")


def choose(run_dir: Path, name: str) -> None:
    """Adds a mirror to a run, which is opened when the run starts or is resumed; other mirrors stay."""
    _store(run_dir, {name: 0} | _stored(run_dir))


class Mirrors:
    """The open mirrors of a run. If a mirror fails, a warning is printed and the run continues without it.

    Args:
      run_dir: run directory.
      lines: lines of metrics.jsonl; each mirror gets those that it lacks.
    """

    def __init__(self, run_dir: Path, lines: Iterable[str]):
        self._run_dir, self._last = run_dir, _stored(run_dir)
        self._open = {}
        for name in self._last:
            with self._guarded(name):
                self._open[name] = KINDS[name](run_dir)
        if self._open:
            self.write([json.loads(line) for line in lines])

    def write(self, rows: list[Row]) -> None:
        """Writes to each mirror the rows that it lacks."""
        for name, mirror in list(self._open.items()):
            with self._guarded(name):
                if lacking := [row for row in rows if row["step"] > self._last[name]]:
                    self._last[name] = lacking[-1]["step"]
                    _store(self._run_dir, self._last)  # before writing: a kill here may lose rows, but repeats none
                    mirror.write(lacking)

    def close(self) -> None:
        for name in list(self._open):
            with self._guarded(name):
                self._open.pop(name).close()

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # any exception, because metrics.jsonl has every row
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            tqdm.write(  # above a progress bar
                f"warning: {name} failed and gets no metrics until the next --resume ({why}); metrics.jsonl continues"
            )
            if name in self._open:
                with contextlib.suppress(Exception):
                    self._open.pop(name).close()


def _values(row: Row) -> dict[str, float]:
    """The metrics of a row that are numbers."""
    return {name: value for name, value in row.items() if name not in TIMES and value is not None}


def _stored(run_dir: Path) -> dict[str, int]:
    path = run_dir / FILE
    return json.loads(path.read_text()) if path.exists() else {}


def _store(run_dir: Path, last: dict[str, int]) -> None:
    temporary = run_dir / f"{FILE}.tmp"
    temporary.write_text(json.dumps(last) + "\n")
    temporary.replace(run_dir / FILE)
