"""Meta-training from Python: ``train`` a recipe, with a run directory or without, and ``resume`` a run."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from meta_train import estimators, program, recipes, settings, warm_start
from meta_train.parallel import devices, processes
from meta_train.program import Compiled
from meta_train.recipe import Recipe
from meta_train.run import directory, loop, mirrors, state
from meta_train.run.loop import Metrics, OnMetrics, Schedule
from metaopt import checkpoint
from metaopt.core import Algorithm, Learned, Theta
from metaopt.errors import UserError


@dataclasses.dataclass(frozen=True)
class Result:
    """What meta-training made.

    Attributes:
      theta: meta-parameters, with those that were held constant.
      metrics: arrays (outer_steps,) by name: "step", "meta_loss", "grad_norm", ...; NaN where nothing was measured.
      finished: whether the end was reached; a callback or a signal ends a run early.
      learned: what ``theta`` belongs to.
    """

    theta: Theta
    metrics: Metrics
    finished: bool
    learned: Learned

    def algorithm(self, num_steps: int | jax.Array | None = None, **others: Any) -> Algorithm:
        """What ``metaopt.load`` would return of it, e.g. an Optax optimizer."""
        return self.learned.bind(self.theta, num_steps=num_steps, **others)


def train(
    recipe: Recipe | str,
    run_dir: str | Path | None = None,
    on_metrics: OnMetrics | None = None,
    *,
    source: str | None = None,
    mirror: str | None = None,
) -> Result:
    """Meta-trains a recipe on all devices of this process, or of every process of a SLURM step.

    Args:
      recipe: what to do; also a recipe's name, or a reference.
      run_dir: a new or empty folder; the run can be killed and resumed. Without one nothing is written.
      on_metrics: called after every dispatch with its metrics, arrays (steps,) by name; a true value ends
        the run.
      source: reference to the recipe, ``path/to/file.py:name``: the run keeps a copy of the file and can be
        resumed from the command line. Needed only where the recipe holds objects.
      mirror: where the metrics go besides metrics.jsonl: "wandb" or "tensorboard".

    Raises:
      UserError: if the folder holds something or cannot be written, the number of samples does not
        divide over the devices, or an object of the recipe does not keep its contract.
    """
    if isinstance(recipe, str):
        recipe, source = recipes.find(recipe), recipes.source_of(recipe)
    if on_metrics is not None and not callable(on_metrics):
        raise UserError(f"on_metrics is called after every dispatch, got {on_metrics!r}")
    if mirror:
        mirrors.check(mirror)
    if run_dir is not None:
        folder = Path(run_dir).expanduser().resolve()
        processes.on_first(lambda: directory.check_empty(folder))
    compiled = program.build(recipe, devices.mesh())  # what cannot be built leaves nothing behind
    if run_dir is None:
        theta, finished, metrics = loop.run_in_memory(compiled, _schedule(recipe), on_metrics)
        return Result(complete(recipe, theta), metrics, finished, whole_family(recipe))
    kind = program.build_learned(recipe).kind
    processes.on_first(lambda: directory.make(recipe, kind, folder, source, mirror))
    return _run(recipe, compiled, folder, on_metrics)


def resume(
    run_dir: str | Path,
    recipe: Recipe | None = None,
    on_metrics: OnMetrics | None = None,
    *,
    mirror: str | None = None,
) -> Result:
    """Continues a run from its newest whole state, as if it had never stopped.

    Args:
      run_dir: the run.
      recipe: where given, must be the run's own; needed where it was begun in Python with objects.
      on_metrics: as for ``train``.
      mirror: one more for its metrics; those it has, it keeps.

    Raises:
      UserError: if there is no run, ``recipe`` is another one, or what it names cannot be found.
    """
    run_dir = Path(run_dir).expanduser()
    if recipe is not None:
        check_same(run_dir, recipe)
    stored = directory.read_recipe(run_dir, recipe)
    directory.check_writable(run_dir)
    if mirror:
        mirrors.check(mirror)
        processes.on_first(lambda: mirrors.choose(run_dir, mirror))
    processes.on_first(lambda: directory.keep_start(stored, run_dir))
    compiled = program.build(directory.self_contained(stored, run_dir), devices.mesh())
    return _run(stored, compiled, run_dir, on_metrics)


def check_same(run_dir: Path, recipe: Recipe) -> None:
    """Raises UserError if a run has another recipe than this one."""
    ours, theirs = settings.to_json(recipe), directory.read_config(run_dir)["recipe"]
    if ours != theirs:
        raise UserError(
            f"{run_dir} is a run of another recipe: {', '.join(settings.differences(ours, theirs))}; leave the recipe "
            "out to resume"
        )


def read_theta(run_dir: str | Path, step: int | None = None) -> tuple[Theta, int]:
    """The meta-parameters of a saved outer step, the newest by default, and that step.

    Raises:
      UserError: if there is no run, no such state, or what the recipe names cannot be found.
    """
    run_dir = Path(run_dir)
    recipe = directory.self_contained(directory.read_recipe(run_dir), run_dir)
    step = state.find(run_dir, step)
    learned = program.build_learned(recipe)
    expected = jax.eval_shape(learned.init, jax.random.key(0))
    arrays = checkpoint.flatten(state.read_theta(run_dir, step))
    return complete(recipe, checkpoint.unflatten(arrays, expected, run_dir)), step


def complete(recipe: Recipe, theta: Theta) -> Theta:
    """What is deployed: the theta of a run and the entries that it held constant."""
    if not recipe.family.only:
        return theta
    return {**warm_start.read(recipe.family).theta, **theta}


def whole_family(recipe: Recipe) -> Learned:
    """What a complete theta belongs to, whatever of it is meta-trained."""
    return warm_start.read(recipe.family).learned if recipe.family.start else recipe.build_family()


def _run(recipe: Recipe, compiled: Compiled, run_dir: Path, on_metrics: OnMetrics | None) -> Result:
    processes.on_first(lambda: directory.keep_start(recipe, run_dir))
    if processes.is_first():
        print(_title(recipe, run_dir), flush=True)
    theta, finished = loop.run(compiled, _schedule(recipe), run_dir, on_metrics)
    kept = directory.self_contained(recipe, run_dir)
    return Result(complete(kept, theta), _columns(directory.read_metrics(run_dir)), finished, whole_family(kept))


def _title(recipe: Recipe, run_dir: Path) -> str:
    """What a run is, in one line."""
    values = directory.read_config(run_dir)
    method = recipe.strategy.name or estimators.label(recipe.estimator.name)
    named = values["recipe"]["tasks"]
    tasks = named if isinstance(named, str) else ", ".join(task.name for task in recipe.build_tasks())
    here = jax.devices()
    return (
        f"{values['family']} on {tasks} by {method}, {recipe.outer.outer_steps} outer steps; "
        f"{len(here)} {here[0].platform} device{'s' * (len(here) > 1)}; folder {run_dir}"
    )


def _schedule(recipe: Recipe) -> Schedule:
    return Schedule(recipe.outer.outer_steps, recipe.run.steps_per_dispatch, recipe.run.save_every)


def _columns(rows: list[dict[str, Any]]) -> Metrics:
    """Rows of metrics as arrays by name; what is null, or not in a row, is NaN."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.array([row.get(name, None) for row in rows], float) for name in names}
