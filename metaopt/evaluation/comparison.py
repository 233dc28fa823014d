"""Algorithms on tasks, beside tuned baselines: what ``metaopt evaluate`` does, from Python."""

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metaopt import checkpoint, families
from metaopt.checkpoint import Checkpoint
from metaopt.checks import check_task, is_ours
from metaopt.core import Algorithm, Task
from metaopt.errors import UserError, unknown
from metaopt.evaluation import compare, results
from metaopt.evaluation.compare import Method, Row, Settings
from metaopt.evaluation.header import header_of
from metaopt.evaluation.results import Header
from metaopt.families import Baseline


class Shard(NamedTuple):
    """One method on some draws of one task: tuned and reported, it needs no other shard."""

    task: str
    method: str
    draws: range


class Comparison:
    """Methods on tasks, made ready: who takes part, in which order, and what is known of each."""

    def __init__(self, methods: Sequence[Method], tasks: Sequence[Task], settings: Settings, about: dict[str, Any]):
        """Raises UserError for a name that occurs twice, a method of the wrong kind, or what is wrong with a task.

        ``about`` is what the header says besides.
        """
        _check(methods, tasks, settings)
        self.settings = settings
        self._tasks = {task.name: task for task in tasks}
        self._methods = {method.name: method for method in methods}
        self._about = about

    @functools.cached_property
    def header(self) -> Header:
        """The first line of ``results.jsonl``: what is compared, so that the same evaluation is known again."""
        return header_of(list(self._methods.values()), list(self._tasks.values()), self.settings, self._about)

    def shards(self, block: int) -> list[Shard]:
        """All the work in the order of ``results.jsonl``, ``block`` draws at a time."""
        draws = range(self.settings.draws)
        blocks = [draws[first : first + block] for first in draws[::block]]
        return [Shard(task, method, block) for task in self._tasks for method in self._methods for block in blocks]

    def rows(self, shard: Shard, *known: Row) -> Iterator[Row]:
        """Measures a shard, but for the rows that are known."""
        task, method = self._tasks[shard.task], self._methods[shard.method]
        return compare.measure(task, method, self.settings, shard.draws, known)


def evaluate(
    algorithms: Mapping[str, Any] | Sequence[str | Path] | str | Path,
    tasks: Sequence[Task] | Task,
    *,
    baselines: Sequence[str] | Mapping[str, Baseline] | None = None,
    num_steps: int = 2000,
    seeds: int = 10,
    tuning_seeds: int = 3,
    draws: int = 1,
    out: str | Path | None = None,
) -> list[Row]:
    """Compares algorithms with tuned baselines on tasks.

    Every method gets the same problems, the same starts and the same randomness. Baselines are tuned
    over their grid on seeds of their own; all methods are reported on fresh ones.

    Args:
      algorithms: names or folders of checkpoints; or, by the name to show, any of: such a name or
        folder, a ``Checkpoint``, a function ``num_steps -> algorithm``.
      tasks: one or several, with names that differ.
      baselines: names of ``families.baselines`` of the algorithms' kind, or own ones by name; the first
        is the reference that targets come from. None is the first three of the kind. Where there is
        no baseline, the first algorithm is the reference.
      num_steps: steps of a run; where more than 20, a multiple of 20.
      seeds: reported runs of each method on each problem.
      tuning_seeds: runs behind the choice of a rate.
      draws: problems drawn from each task.
      out: where given, a folder for ``results.jsonl`` and the report. What an interrupted evaluation of the
        same has left there is not measured again.

    Returns:
      The rows of ``results.jsonl``: "phase" "tuning" or "report", "task", "draw", "method", "seed",
      "train" and "valid" losses along the run, "test" at its end, "diverged".

    Raises:
      UserError: for a name that is unknown or occurs twice, a kind that does not solve a task, or a
        folder that cannot be written or holds the results of another evaluation.
    """
    if isinstance(tasks, str):
        raise UserError(
            f"tasks are objects here, got {tasks!r}: pass tasks.suites.build({tasks!r}), or use the command line"
        )
    tasks = tasks if isinstance(tasks, Sequence) else [tasks]
    settings = Settings(num_steps=num_steps, seeds=seeds, tuning_seeds=tuning_seeds, draws=draws)
    if isinstance(algorithms, str | Path):
        algorithms = [algorithms]
    if isinstance(baselines, str):
        baselines = [baselines]
    named = algorithms if isinstance(algorithms, Mapping) else {label(name): name for name in algorithms}
    if len(named) < len(algorithms):
        raise UserError(f"two algorithms have the same name among {', '.join(map(str, algorithms))}: pass a mapping")
    learned = [learned_method(name, what, tasks) for name, what in named.items()]
    methods = [*baseline_methods(baselines, learned), *learned]
    comparison = Comparison(methods, tasks, settings, {"title": ", ".join(named)})
    rows = run(comparison, Path(out) if out is not None else None)
    if out is not None:
        from metaopt.evaluation import report  # draws with matplotlib, which takes its time to import

        report.write(Path(out))
    return rows


def run(comparison: Comparison, out: Path | None, say: Callable[[str], Any] | None = None) -> list[Row]:
    """Computes all shards; where there is a folder, writes ``results.jsonl`` as it goes and begins where that ends."""
    shards, known = comparison.shards(comparison.settings.draws), []
    if out is not None:
        make_writable(out)
        known = results.begin(out, comparison.header)
    rows, reported = list(known), {(row["task"], row["method"], row["draw"]) for row in known if "seed" in row}
    for i, shard in enumerate(shards):
        if all((shard.task, shard.method, draw) in reported for draw in shard.draws):
            continue
        if say:
            say(f"[{i + 1}/{len(shards)}] {shard.method} on {shard.task}")
        for row in comparison.rows(shard, *known):
            rows.append(row)
            if out is not None:
                results.append(out, row)
    return rows


def learned_method(name: str, what: Any, tasks: Sequence[Task]) -> Method:
    """An algorithm that takes part without tuning; ``what`` as in ``evaluate``."""
    if isinstance(what, str | Path):
        what = checkpoint.read(what)
    if isinstance(what, Checkpoint):
        found = what

        def bind(num_steps: int) -> Algorithm:
            return found.learned.bind(found.theta, num_steps=num_steps)

        return compare.learned(name, found.learned.kind, bind, found.manifest)
    if not callable(what):
        raise UserError(f"{name} is no algorithm: give a checkpoint or a function num_steps -> algorithm, got {what!r}")
    return compare.learned(name, tasks[0].solved_by[0] if tasks else "optimizer", what)


def baseline_methods(chosen: Sequence[str] | Mapping[str, Baseline] | None, learned: Sequence[Method]) -> list[Method]:
    """Baselines of the kind of the learned methods; ``chosen`` as in ``evaluate``."""
    kind = learned[0].kind if learned else "optimizer"
    if isinstance(chosen, Mapping):
        return [compare.baseline(name, kind, settings) for name, settings in chosen.items()]
    known = families.baselines(kind)
    names = list(known)[:3] if chosen is None else chosen
    for name in names:
        if name not in known:
            raise unknown(f"baseline of kind {kind}", name, known)
    return [compare.baseline(name, kind, known[name]) for name in names]


def label(name: str | Path) -> str:
    """How a checkpoint or a run is called in tables: the last part of its path."""
    last = os.path.basename(os.path.abspath(Path(name).expanduser()))
    return os.fsencode(last).decode(errors="replace")  # what Python could not decode no table can show


def make_writable(folder: Path) -> None:
    """Makes the folder. Raises UserError if results cannot be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write results to {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"cannot write results to {folder}: permission denied")


def _check(methods: Sequence[Method], tasks: Sequence[Task], settings: Settings) -> None:
    if not methods or not tasks:
        raise UserError("a comparison needs an algorithm or a baseline, and a task")
    for kind, names in (("methods", [m.name for m in methods]), ("tasks", [task.name for task in tasks])):
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"two {kind} are called {name!r}: name each once, and no checkpoint like a baseline")
    for task in tasks:
        for method in methods:
            if method.kind not in task.solved_by:
                raise UserError(
                    f"task {task.name} is solved by {' or '.join(task.solved_by)}, {method.name} is of kind "
                    f"{method.kind}"
                )
        if not is_ours(task):

            def bind(rate: jax.Array) -> Algorithm:
                return methods[0].make(rate, settings.num_steps)

            check_task(task, bind, jnp.float32(methods[0].rates[0]))
