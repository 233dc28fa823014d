"""Checkpoints and runs on a suite of tasks: what ``metaopt evaluate`` does, at once or in shards."""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meta_train import training
from meta_train.run import directory
from metaopt import checkpoint, families, references
from metaopt.checkpoint import Checkpoint
from metaopt.core import Task, Theta
from metaopt.errors import UserError, unknown
from metaopt.evaluation import results
from metaopt.evaluation.compare import Method, Row, Settings
from metaopt.evaluation.comparison import (
    Comparison,
    Shard,
    baseline_methods,
    label,
    learned_method,
    make_writable,
    run,
)
from metaopt.families import Baseline
from tasks import suites

SHARDS = "shards"  # in the folder of an evaluation: what its shards wrote


@dataclasses.dataclass(frozen=True)
class Request:
    """What is compared with what.

    Attributes:
      names: checkpoints or run directories, by name or folder; at least one.
      suite: name of a suite, or a reference to tasks.
      baselines: names, or references to a ``families.Baseline``; the first is the reference that
        targets come from. None is the first three of the kind, an empty tuple none at all.
      settings: steps, seeds, problems drawn.
      only: names of tasks, where not the whole suite is wanted.
      block: draws in a shard. More of them share one compilation.
      foreign: families of checkpoints whose family metaopt does not have: ``NAME=REFERENCE``, or
        ``REFERENCE`` for all of them.
    """

    names: tuple[str, ...]
    suite: str
    baselines: tuple[str, ...] | None = None
    settings: Settings = Settings()
    only: tuple[str, ...] | None = None
    block: int = 1
    foreign: tuple[str, ...] = ()

    def __post_init__(self):
        if self.block < 1:
            raise UserError(f"a block must be at least 1 draw, got {self.block}")

    @property
    def suite_label(self) -> str:
        place, attribute = references.split(self.suite)
        return attribute or Path(place).stem if references.is_reference(self.suite) else self.suite

    def options(self) -> list[str]:
        """The words behind ``metaopt evaluate`` that ask for this from any folder, but for --out and --shard."""
        words = [*map(_absolute, self.names), "--suite", references.absolute(self.suite)]
        if self.baselines is not None:
            words += ["--baselines", ",".join(map(references.absolute, self.baselines))]
        words += ["--tasks", ",".join(self.only)] if self.only else []
        for given in self.foreign:
            name, reference = _split_foreign(given)
            words += [
                "--family",
                f"{name}={references.absolute(reference)}" if name else references.absolute(reference),
            ]
        numbers = {"steps": self.settings.num_steps, "seeds": self.settings.seeds, "draws": self.settings.draws}
        for name, number in (numbers | {"block": self.block}).items():
            words += [f"--{name}", str(number)]
        return words


def prepare(request: Request) -> Comparison:
    """Reads weights and finds tasks.

    Raises:
      UserError: for an unknown name, one given twice, missing data, or a kind that does not solve a task.
    """
    tasks = _tasks(request)
    for name, _ in map(_split_foreign, request.foreign):
        if name and name not in map(label, request.names):
            raise unknown("name in --family", name, map(label, request.names))
    learned = [learned_method(label(n), read(n, request.foreign), tasks) for n in request.names]
    title = f"{', '.join(method.name for method in learned)} on {request.suite_label}"
    about = {"title": title, "suite": request.suite_label}
    return Comparison([*_baselines(request, learned), *learned], tasks, request.settings, about)


def read(name: str, foreign: Sequence[str] = ()) -> Checkpoint:
    """A checkpoint, or the newest state of a run, whose own code may run.

    ``foreign`` as in ``Request``.
    """
    if directory.is_run(name):
        recipe = directory.read_recipe(Path(name))
        theta, _ = training.read_theta(name)
        seen: dict[str, Any] = {
            "meta_trained_on": directory.read_traits(Path(name)),
            "family": directory.read_config(Path(name))["family"],
            "sha256": _digest(theta),  # a run goes on: its newest theta may be another one by now
        }
        return Checkpoint(training.whole_family(directory.self_contained(recipe, Path(name))), theta, seen)
    if families.is_ours(checkpoint.read_manifest(name)["family"]):
        return checkpoint.read(name)
    given = dict(_split_foreign(words) for words in foreign)
    family = given.get(label(name), given.get(""))
    if not family:
        raise UserError(
            f"checkpoint {name} is of the family {checkpoint.read_manifest(name)['family']!r}, which metaopt does not "
            "have and will not run unasked: give it with --family path/to/file.py:name"
        )
    return checkpoint.read(name, family=family)


def evaluate(request: Request, out: Path) -> list[Row]:
    """Compares and writes ``results.jsonl`` to ``out``; goes on from what an interrupted evaluation left there.

    It is the loop over shards that hold all draws, so each method is compiled once for a task.

    Returns:
      The rows of ``results.jsonl``.

    Raises:
      UserError: as ``prepare``, or if the folder cannot be written.
    """
    began = [0.0]

    def say(what: str | None) -> None:
        """Names the shard that begins; says of the one before how long it took."""
        if began[0]:
            print(f"{time.monotonic() - began[0]:.0f} s", flush=True)
        began[0] = time.monotonic()
        if what:
            print(what, "...", end=" ", flush=True)

    rows = run(prepare(request), out, say)
    say(None)
    return rows


def evaluate_shard(request: Request, out: Path, index: int) -> Path:
    """Computes one shard and writes ``out/shards/INDEX.jsonl``, whole or not at all.

    Its first line is the header of the evaluation and, for ``merge``, which shard of
    how many it is and the options that ask for the same evaluation.

    Raises:
      UserError: as ``prepare``, for an index out of range, a folder that cannot be written, or one that holds this
        shard of another evaluation.
    """
    comparison = prepare(request)
    shards = comparison.shards(request.block)
    if not 0 <= index < len(shards):
        raise UserError(f"there is no shard {index}: this evaluation has the shards 0 to {len(shards) - 1}")
    path, shard = out / SHARDS / f"{index}.jsonl", shards[index]
    make_writable(path.parent)  # before the work, not after it
    asked = {"names": [*map(_absolute, request.names)], "options": request.options()}
    header = comparison.header | {"shard": index, "of": len(shards)} | asked
    if _is_there(path, header):
        print(f"shard {index} of 0 to {len(shards) - 1} is there already")
        return path
    began = time.monotonic()
    print(f"shard {index} of 0 to {len(shards) - 1}: {shard.method} on {shard.task} ...", end=" ", flush=True)
    lines = [header, *comparison.rows(shard)]
    print(f"{time.monotonic() - began:.0f} s", flush=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text("".join(json.dumps(line) + "\n" for line in lines))
    unfinished.replace(path)
    return path


def _is_there(path: Path, header: dict[str, Any]) -> bool:
    """Whether a shard is whole. Raises UserError if it is of another evaluation, which stays."""
    try:
        old, *_ = map(json.loads, path.read_text().splitlines())
    except (OSError, ValueError):
        return False
    if not isinstance(old, dict) or "of" not in old:  # damaged: it is made again
        return False
    if different := results.difference(old, header):
        raise UserError(
            f"{path} is of another evaluation than is asked for: {different}; choose another folder with --out, or "
            "move that file away"
        )
    return True


def shards(request: Request) -> list[Shard]:
    """The work of an evaluation, shard by shard. Raises UserError as ``prepare``."""
    return prepare(request).shards(request.block)


def _tasks(request: Request) -> list[Task]:
    tasks = suites.build(request.suite)
    names = [task.name for task in tasks]
    for name in request.only or ():
        if name not in names:
            raise unknown(f"task of {request.suite}", name, names)
    return [task for task in tasks if request.only is None or task.name in request.only]


def _baselines(request: Request, learned: Sequence[Method]) -> list[Method]:
    if request.baselines is None:
        return baseline_methods(None, learned)
    known, chosen = families.baselines(learned[0].kind), {}
    for name in request.baselines:
        found = references.resolve(name) if references.is_reference(name) else known.get(name)
        if found is None:
            raise unknown(f"baseline of kind {learned[0].kind}", name, known)
        if not isinstance(found, Baseline):
            raise UserError(f"{name} is no baseline: it should be a metaopt.families.Baseline")
        shown = references.split(name)[1] if references.is_reference(name) else name
        if shown in chosen:
            raise UserError(f"two methods are called {shown!r}: name a baseline once")
        chosen[shown] = found
    return baseline_methods(chosen, learned)


def _digest(theta: Theta) -> str:
    digest = hashlib.sha256()
    for path, array in checkpoint.flatten(theta).items():
        digest.update(path.encode() + array.tobytes())
    return digest.hexdigest()


def _split_foreign(given: str) -> tuple[str, str]:
    """``NAME=REFERENCE`` or ``REFERENCE``, whose name is ""."""
    name, equals, reference = given.partition("=")
    return (name, reference) if equals and "/" not in name else ("", given)


def _absolute(name: str) -> str:
    """A folder by its whole path; a name as it is."""
    is_folder = checkpoint.is_path(name) or directory.is_run(name)
    return os.path.abspath(Path(name).expanduser()) if is_folder else name
