"""One meta-training run and its directory: start it, resume it, read it."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from meta_train import devices, estimators, mirrors, outer, strategies
from meta_train import recipe as recipes
from meta_train.inner import supervised
from meta_train.log import Log, Progress
from meta_train.recipe import Recipe
from meta_train.state import StateStore
from metaopt import checkpoint
from metaopt.core import Theta
from metaopt.errors import UserError
from tasks import suites

START = "start"  # in a run directory: the checkpoint that it began from


@dataclasses.dataclass(frozen=True)
class Program:
    """A recipe turned into functions: the first state, and a dispatch of outer steps."""

    init: Callable[[], outer.TrainState]
    chunk: Callable  # (state) -> (state, metrics)


def compile_recipe(recipe: Recipe, mesh: Mesh) -> Program:
    """Builds what the recipe describes, for the devices of ``mesh``."""
    optimizer = recipe.learned_optimizer()
    problems = [supervised.build(optimizer, task, recipe.inner()) for task in suites.build(recipe.suite)]
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
    return Program(jax.jit(init, out_shardings=outer.shardings(mesh)), chunk)


def start(recipe: Recipe, run_dir: Path, mirror: str | None = None) -> Path:
    """Begins a new run in a new or empty folder and carries it to its end.

    Args:
      recipe: what to do.
      run_dir: the folder.
      mirror: where the metrics go besides metrics.jsonl, see ``meta_train.mirrors``.

    Raises:
      UserError: if the folder holds something or cannot be written, or what the mirror
        needs is not installed.
    """
    if mirror:
        mirrors.check(mirror)
    if run_dir.exists() and any(run_dir.iterdir()):
        remedy = "continue it with --resume" if (run_dir / "config.json").exists() else "choose another"
        raise UserError(f"run directory {run_dir} is not empty: {remedy}")
    compile_recipe(recipe, devices.mesh())  # what cannot be built leaves nothing behind
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if recipe.start:  # kept, so that a run goes on whatever becomes of the checkpoint
            shutil.copytree(checkpoint.find(recipe.start), run_dir / START)
        (run_dir / "config.json").write_text(json.dumps(recipe_json(recipe), indent=2) + "\n")
        if mirror:
            mirrors.choose(run_dir, mirror)
    except OSError as error:
        raise UserError(f"cannot write to run directory {run_dir}: {error.strerror}") from error
    return _train(recipe, run_dir)


def resume(run_dir: Path, recipe: Recipe | None = None, mirror: str | None = None) -> Path:
    """Continues a run from its newest complete state, as if it had never stopped.

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
        mirrors.choose(run_dir, mirror)
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
    store = StateStore(run_dir)
    step = store.latest() if step is None else step
    if step is None:
        raise UserError(f"{run_dir} has no saved state yet")
    # One device can hold what any number of them saved.
    state = store.restore(step, compile_recipe(recipe, devices.mesh(1)).init())
    store.close()
    return recipe.complete(state.theta), step


def _self_contained(recipe: Recipe, run_dir: Path) -> Recipe:
    """The recipe with the run's own copy of the checkpoint it begins from."""
    return dataclasses.replace(recipe, start=str((run_dir / START).resolve())) if recipe.start else recipe


def _train(recipe: Recipe, run_dir: Path) -> Path:
    program = compile_recipe(_self_contained(recipe, run_dir), devices.mesh())
    state, store = program.init(), StateStore(run_dir)
    if (saved := store.latest()) is not None:
        state = store.restore(saved, state)
        print(f"resumed {run_dir} at outer step {saved}")
    step = int(state.step)
    log, progress = Log(run_dir, step), Progress(recipe.outer_steps, step)
    try:
        with _stop_on_signal() as stop:
            leaving = step == recipe.outer_steps
            while not leaving:
                began = time.monotonic()
                state, metrics = program.chunk(state)
                metrics = jax.device_get(metrics)
                seconds = time.monotonic() - began
                log.write(step + 1, metrics)
                step += recipe.steps_per_dispatch
                losses = metrics["meta_loss"][np.isfinite(metrics["meta_loss"])]
                meta_loss = float(np.mean(losses)) if losses.size else float("nan")
                progress.update(step, meta_loss, float(np.sum(metrics["inner_steps"])) / seconds)
                if np.all(metrics["skipped"]):
                    _report_skipped(run_dir, step, metrics)
                leaving = step == recipe.outer_steps or bool(stop)
                if leaving or step % recipe.save_every == 0:
                    store.save(state, meta_loss)
            store.wait()
    finally:
        log.close()
        store.close()
    if step < recipe.outer_steps:
        print(f"stopped at outer step {step}; continue with: metaopt train --resume {run_dir}")
    return run_dir


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[list[int]]:
    """Yields a list that receives SIGTERM or SIGINT: the run ends after the dispatch."""
    received: list[int] = []
    usual = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handler(number, frame):
        del frame
        received.append(number)
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process

    for number in usual:
        signal.signal(number, handler)
    try:
        yield received
    finally:
        for number, previous in usual.items():
            signal.signal(number, previous)


def _report_skipped(run_dir: Path, step: int, metrics) -> None:
    dead = max(float(np.max(v)) for k, v in metrics.items() if k.endswith("frac_dead"))
    print(
        f"warning: no usable meta-gradient up to outer step {step} ({dead:.0%} of the samples dead); theta is "
        f"unchanged. Lower settings.step_multiplier or sigma, see {run_dir / 'metrics.jsonl'}"
    )
