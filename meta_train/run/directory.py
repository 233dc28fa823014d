"""One meta-training run and its directory: start it, resume it, read it."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import jax
import optax
from jax.sharding import Mesh

from meta_train import estimators, outer, strategies
from meta_train import recipe as recipes
from meta_train.inner import episodes
from meta_train.parallel import devices, processes
from meta_train.recipe import Recipe
from meta_train.run import loop, mirrors, state
from metaopt import checkpoint
from metaopt.core import Theta
from metaopt.errors import UserError
from tasks import suites

UNFINISHED = "config.json.tmp"
START = "start"  # in a run directory: the checkpoint that it began from


def compile_recipe(recipe: Recipe, mesh: Mesh) -> loop.Program:
    """Builds what the recipe describes, for the devices of ``mesh``."""
    optimizer = recipe.learned_optimizer()
    problems = [episodes.build(optimizer, task, recipe.inner()) for task in suites.build(recipe.suite)]
    tx = outer.optimizer(recipe.outer())
    if recipe.strategy:
        theta = jax.eval_shape(optimizer.init, jax.random.key(0))
        tx = optax.chain(optax.clip_by_global_norm(recipe.clip), tx)
        begin, step = strategies.build(theta, problems, recipe.strategies(), tx, mesh)
    else:
        built = [estimators.build(recipe.estimator, p, recipe.samples(), mesh, **recipe.options) for p in problems]
        begin = lambda theta, key: outer.init(theta, built, tx, key)
        step = outer.build_step(built, tx, recipe.clip)

    def init():
        k_theta, k_run = jax.random.split(jax.random.key(recipe.seed))
        return begin(optimizer.init(k_theta), k_run)

    chunk = outer.build_chunk(step, recipe.steps_per_dispatch, mesh)
    return loop.Program(jax.jit(init, out_shardings=outer.shardings(mesh)), chunk)


def start(recipe: Recipe, run_dir: Path, mirror: str | None = None) -> bool:
    """Begins a new run in a new or empty folder and carries it to its end; every process of a step calls this.

    Args:
      recipe: what to do.
      run_dir: the folder.
      mirror: where the metrics go besides metrics.jsonl, see ``meta_train.mirrors``.

    Returns:
      Whether it is done: a signal or the time limit of a job ends a run early.

    Raises:
      UserError: if the folder holds something or cannot be written, or what the mirror
        needs is not installed.
    """
    if mirror:
        mirrors.check(mirror)
    run_dir = run_dir.resolve()
    processes.on_first(lambda: _check_empty(run_dir))
    compile_recipe(recipe, devices.mesh())  # what cannot be built leaves nothing behind
    processes.on_first(lambda: _make(recipe, run_dir, mirror))
    return _train(recipe, run_dir)


def resume(run_dir: Path, recipe: Recipe | None = None, mirror: str | None = None) -> bool:
    """Continues a run from its newest whole state, as if it had never stopped; returns as ``start`` does.

    Args:
      run_dir: of the run.
      recipe: where given, must be the run's own.
      mirror: one more for its metrics, see ``meta_train.mirrors``; those it has, it keeps.

    Raises:
      UserError: if there is no run, or ``recipe`` is another one, or what the mirror
        needs is not installed.
    """
    stored = read_recipe(run_dir)
    if recipe is not None and recipe != stored:
        ours, theirs = dataclasses.asdict(recipe), dataclasses.asdict(stored)
        different = [f"{k}={theirs[k]!r} (asked for {ours[k]!r})" for k in ours if ours[k] != theirs[k]]
        raise UserError(f"{run_dir} is a run of another recipe: {', '.join(different)}; leave the recipe out to resume")
    if not os.access(run_dir, os.W_OK):
        raise UserError(f"cannot write to run directory {run_dir}: permission denied")
    if mirror:
        mirrors.check(mirror)
        processes.on_first(lambda: mirrors.choose(run_dir, mirror))
    return _train(stored, run_dir)


def read_recipe(run_dir: Path) -> Recipe:
    """The recipe of a run. Raises UserError if ``run_dir`` holds no run."""
    path = run_dir / "config.json"
    if not path.is_file():
        raise UserError(f"{run_dir} holds no run: config.json is missing")
    try:
        return recipes.from_json(json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged: {error}") from error


def recipe_json(recipe: Recipe) -> dict:
    """What ``config.json`` holds."""
    return dataclasses.asdict(recipe)


def read_theta(run_dir: Path, step: int | None = None) -> tuple[Theta, int]:
    """The meta-parameters of a saved outer step, the newest by default, and that step."""
    recipe = _self_contained(read_recipe(run_dir), run_dir)
    # One device can hold what any number of them saved. Made first: a run that goes on deletes old states.
    like = compile_recipe(recipe, devices.mesh(1)).init()
    if step is None:
        step = state.newest(run_dir)
    else:
        state.check(run_dir, step)
    if step is None:
        raise UserError(f"{run_dir} has no saved state yet")
    return recipe.complete(state.restore(run_dir, step, like).theta), step


def _self_contained(recipe: Recipe, run_dir: Path) -> Recipe:
    """The recipe with the run's own copy of the checkpoint it begins from."""
    return dataclasses.replace(recipe, start=str((run_dir / START).resolve())) if recipe.start else recipe


def _check_empty(run_dir: Path) -> None:
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"run directory {run_dir} is a file: choose another")
    if run_dir.exists() and {path.name for path in run_dir.iterdir()} - {UNFINISHED}:
        remedy = "continue it with --resume" if (run_dir / "config.json").exists() else "choose another"
        raise UserError(f"run directory {run_dir} is not empty: {remedy}")


def _make(recipe: Recipe, run_dir: Path, mirror: str | None) -> None:
    """Makes the folder; a kill in between leaves an empty one or a run."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / UNFINISHED).write_text(json.dumps(recipe_json(recipe), indent=2) + "\n")
        (run_dir / UNFINISHED).rename(run_dir / "config.json")
        if mirror:
            mirrors.choose(run_dir, mirror)
    except OSError as error:
        raise UserError(f"cannot write to run directory {run_dir}: {error.strerror}") from error


def _keep_start(recipe: Recipe, run_dir: Path) -> None:
    """Copies the checkpoint that a run begins from: it goes on whatever becomes of that."""
    if not recipe.start or (run_dir / START).exists():
        return
    unfinished = run_dir / f"{START}.tmp"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        shutil.copytree(checkpoint.find(recipe.start), unfinished)
        unfinished.rename(run_dir / START)
    except OSError as error:
        raise UserError(f"cannot copy checkpoint {recipe.start} to {run_dir}: {error}; then use --resume") from error


def _train(recipe: Recipe, run_dir: Path) -> bool:
    processes.on_first(lambda: _keep_start(recipe, run_dir))
    schedule = loop.Schedule(recipe.outer_steps, recipe.steps_per_dispatch, recipe.save_every)
    return loop.run(compile_recipe(_self_contained(recipe, run_dir), devices.mesh()), schedule, run_dir)
