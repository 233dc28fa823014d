"""A checkpoint on a suite of tasks: what ``metaopt evaluate`` does, at once or in parts."""

import dataclasses
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from metaopt import __version__, checkpoint
from metaopt.core import Task
from metaopt.errors import UserError, unknown
from metaopt.evaluation import compare, heldout, report
from metaopt.optimizers.baselines import BASELINES
from tasks import suites

PARTS = "parts"  # in the folder of an evaluation: what its parts wrote


@dataclasses.dataclass(frozen=True)
class Request:
    """What is compared with what.

    Attributes:
      name: of a checkpoint, or its folder.
      suite: see ``tasks.suites``.
      baselines: names; the first is the reference that targets come from.
      settings: steps, seeds, problems drawn.
      only: names of tasks, where not the whole suite is wanted.
      block: draws in a part. More of them share one compilation.
    """

    name: str
    suite: str
    baselines: tuple[str, ...]
    settings: compare.Settings
    only: tuple[str, ...] | None = None
    block: int = 1

    def __post_init__(self):
        if self.block < 1:
            raise UserError(f"a block must be at least 1 draw, got {self.block}")

    @property
    def label(self) -> str:
        return Path(self.name).name

    def options(self) -> list[str]:
        """The words behind ``metaopt evaluate`` that ask for this, but for --out and --part."""
        words = [self.name, "--suite", self.suite, "--baselines", ",".join(self.baselines)]
        words += ["--tasks", ",".join(self.only)] if self.only else []
        numbers = {"steps": self.settings.num_steps, "seeds": self.settings.seeds, "draws": self.settings.draws}
        for name, number in (numbers | {"block": self.block}).items():
            words += [f"--{name}", str(number)]
        return words


class Part(NamedTuple):
    """One optimizer on some draws of one task: tuned and reported, it needs no other part."""

    task: str
    optimizer: str
    draws: range


def plan(request: Request) -> list[Part]:
    """The parts of an evaluation, in the order of ``results.jsonl``.

    Raises:
      UserError: for an unknown name, one given twice, or missing data.
    """
    checkpoint.find(request.name)
    for baseline in request.baselines:
        if baseline not in BASELINES:
            raise unknown("baseline", baseline, BASELINES)
    draws = range(request.settings.draws)
    blocks = [draws[first : first + request.block] for first in draws[:: request.block]]
    names = [*request.baselines, request.label]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two optimizers are called {name!r}: name a baseline once, and no checkpoint like one")
    return [Part(task.name, name, block) for task in _tasks(request) for name in names for block in blocks]


def evaluate(request: Request, out: Path) -> None:
    """Compares a checkpoint with tuned baselines and writes ``results.jsonl`` to ``out``.

    It is the loop over parts that hold all draws, so each optimizer is compiled once
    for a task. What ``out`` holds of an earlier evaluation is replaced.

    Raises:
      UserError: for an unknown name, or a folder that cannot be written.
    """
    request = dataclasses.replace(request, block=request.settings.draws)
    parts, evaluation = plan(request), _Evaluation(request)
    _make_writable(out)
    with (out / report.RESULTS).open("w", buffering=1) as file:
        file.write(json.dumps(evaluation.header) + "\n")
        for i, part in enumerate(parts):
            for row in evaluation.rows(part, f"[{i + 1}/{len(parts)}]"):
                file.write(json.dumps(row) + "\n")


def evaluate_part(request: Request, out: Path, index: int) -> Path:
    """Computes one part and writes ``out/parts/INDEX.jsonl``, whole or not at all.

    Its first line is the header of the evaluation and, for ``merge``, which part of
    how many it is and the options that ask for the same evaluation.

    Raises:
      UserError: for an unknown name, an index out of range, or a folder that cannot
        be written.
    """
    parts = plan(request)
    if not 0 <= index < len(parts):
        raise UserError(f"there is no part {index}: this evaluation has the parts 0 to {len(parts) - 1}")
    evaluation = _Evaluation(request)
    path = out / PARTS / f"{index}.jsonl"
    _make_writable(path.parent)  # before the work, not after it
    header = evaluation.header | {"part": index, "of": len(parts), "options": request.options()}
    lines = [header, *evaluation.rows(parts[index], f"part {index} of 0 to {len(parts) - 1}:")]
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text("".join(json.dumps(line) + "\n" for line in lines))
    unfinished.replace(path)
    return path


def record(name: str, folder: Path) -> None:
    """Writes the result of an evaluation into the manifest of the checkpoint.

    Raises:
      UserError: if the checkpoint has other weights by now.
    """
    header, _ = report.read(folder)
    if header["weights_sha256"] != checkpoint.read_manifest(name)["sha256"]:
        raise UserError(f"{folder} is of other weights than {name} has now: evaluate again")
    checkpoint.record(name, results={header["suite"]: report.result(folder)})


class _Evaluation:
    """A request made ready: weights read, tasks and optimizers by name."""

    def __init__(self, request: Request):
        found, tasks = checkpoint.read(request.name), _tasks(request)
        entrants = [compare.baseline(name, BASELINES[name]) for name in request.baselines]
        entrants.append(compare.learned(request.label, lambda n: found.optimizer.bind(found.theta, num_steps=n)))
        self._settings = request.settings
        self._tasks = {task.name: task for task in tasks}
        self._entrants = {entrant.name: entrant for entrant in entrants}
        self.header = _header(request, tasks, found.manifest)

    def rows(self, part: Part, count: str) -> Iterator[compare.Row]:
        """Computes a part, and says on the terminal which one and how long it took."""
        began = time.monotonic()
        print(f"{count} {part.optimizer} on {part.task} ...", end=" ", flush=True)
        yield from compare.measure(self._tasks[part.task], self._entrants[part.optimizer], self._settings, part.draws)
        print(f"{time.monotonic() - began:.0f} s", flush=True)


def _tasks(request: Request) -> list[Task]:
    tasks = suites.build(request.suite)
    names = [task.name for task in tasks]
    for name in request.only or ():
        if name not in names:
            raise unknown(f"task of {request.suite}", name, names)
    return [task for task in tasks if request.only is None or task.name in request.only]


def _header(request: Request, tasks: list[Task], manifest: dict[str, Any]) -> dict[str, Any]:
    """The first line of ``results.jsonl``."""
    settings, trained_on = request.settings, manifest.get("meta_trained_on")
    return {
        "title": f"{request.label} on {request.suite}",
        "learned": [request.label],
        "reference": request.baselines[0],
        "suite": request.suite,
        "num_steps": settings.num_steps,
        "seeds": settings.seeds,
        "tuning_seeds": settings.tuning_seeds,
        "draws": settings.draws,
        "rates": {name: BASELINES[name].rates for name in request.baselines},
        "novelty": {task.name: heldout.novelty(task.traits(), trained_on) for task in tasks},
        "weights_sha256": manifest["sha256"],
        "versions": {"metaopt": __version__, "jax": jax.__version__},
        "device": jax.devices()[0].device_kind,
    }


def _make_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write results to {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"cannot write results to {folder}: permission denied")
