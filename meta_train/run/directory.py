"""The run directory: what it holds, how it is begun, claimed and read.

config.json    the recipe, and where what it names was found
recipe.py      a copy of the recipe's file, where it did not come with metaopt
tasks.json     traits of the tasks, as they were when the run started
metrics.jsonl  a row an outer step
state/         saved outer steps
start/         the checkpoint that the run began from, where there is one
"""

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from meta_train import settings
from meta_train.recipe import Recipe
from meta_train.run import mirrors, origins, preempt
from meta_train.run.origins import COPY
from metaopt import checkpoint, references
from metaopt.errors import UserError

CONFIG, TASKS, METRICS = "config.json", "tasks.json", "metrics.jsonl"
START = "start"  # the checkpoint that it began from
STATE = "state"  # the saved outer steps
UNFINISHED = CONFIG + ".tmp"
# What a run may have before it has measured anything.
OF_A_START = {CONFIG, UNFINISHED, COPY, TASKS, METRICS, STATE, START, f"{START}.tmp"}
OF_A_START |= {mirrors.FILE, preempt.OWNER, preempt.MARKER}
ENTRIES = ("recipe", "kind", "family", "source", "search")  # of config.json
REFERENCES = ("family", "tasks", "estimator")  # settings that may be references


def is_run(name: str | Path) -> bool:
    """Whether a name means a run directory, and not a checkpoint, whose code must not run."""
    folder = Path(name).expanduser()
    if not (folder / CONFIG).is_file() or (folder / checkpoint.MANIFEST).exists():
        return False
    return checkpoint.is_path(name) or name not in checkpoint.list_pretrained()


def check_empty(run_dir: Path) -> None:
    """Raises UserError unless a run can begin in ``run_dir``."""
    check_name(run_dir)
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"run directory {run_dir} is a file: choose another")
    found = {path.name for path in run_dir.iterdir()} if run_dir.exists() else set()
    if CONFIG in found and _has_nothing(run_dir):
        found -= OF_A_START
    elif UNFINISHED in found:  # written first: what a start that was killed has left
        found -= {UNFINISHED, COPY, TASKS}
    if found:
        remedy = "continue it with --resume" if (run_dir / CONFIG).exists() else "choose another"
        raise UserError(f"run directory {run_dir} is not empty: {remedy}")


def make(recipe: Recipe, kind: str, run_dir: Path, source: str | None = None, mirror: str | None = None) -> None:
    """Makes the folder; a kill in between leaves one in which a run can begin, or a run.

    Args:
      recipe: what the run does.
      kind: kind of its family.
      run_dir: an empty folder, or none yet.
      source: reference to the recipe where it did not come with metaopt; its file is copied.
      mirror: where the metrics go besides metrics.jsonl, see ``mirrors``.

    Raises:
      UserError: if it cannot be written.
    """
    config = {"recipe": settings.to_json(recipe), "kind": kind, "family": origins.family_label(recipe, source)}
    config |= origins.of(recipe, source)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / UNFINISHED).write_text(json.dumps(config, indent=2) + "\n")
        for name in (COPY, START, mirrors.FILE):  # of an earlier start, with another recipe
            _remove(run_dir / name)
        if source:
            shutil.copyfile(references.file_of(source), run_dir / COPY)
        traits = [task.traits() for task in recipe.build_tasks()]
        (run_dir / TASKS).write_text(json.dumps(traits, indent=2) + "\n")
        (run_dir / UNFINISHED).rename(run_dir / CONFIG)
        if mirror:
            mirrors.choose(run_dir, mirror)
    except OSError as error:
        raise UserError(f"cannot write to run directory {run_dir}: {error.strerror}") from error


def _has_nothing(run_dir: Path) -> bool:
    """Whether a run stopped before it had measured anything, e.g. while it was compiled, and nobody is at it."""
    has_rows = (run_dir / METRICS).exists() and (run_dir / METRICS).stat().st_size
    has_states = (run_dir / STATE).exists() and any((run_dir / STATE).iterdir())
    return not has_rows and not has_states and not preempt.is_taken(run_dir)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def keep_start(recipe: Recipe, run_dir: Path) -> None:
    """Copies the checkpoint that a run begins from: it goes on whatever becomes of that."""
    if not recipe.family.start or (run_dir / START).exists():
        return
    unfinished = run_dir / f"{START}.tmp"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        shutil.copytree(checkpoint.find(recipe.family.start), unfinished)
        unfinished.rename(run_dir / START)
    except OSError as error:
        raise UserError(
            f"cannot copy checkpoint {recipe.family.start} to {run_dir}: {error}; then use --resume"
        ) from error


def self_contained(recipe: Recipe, run_dir: Path) -> Recipe:
    """The recipe with the run's own copy of the checkpoint it begins from."""
    if not recipe.family.start:
        return recipe
    return dataclasses.replace(
        recipe, family=dataclasses.replace(recipe.family, start=str((run_dir / START).resolve()))
    )


def read_config(run_dir: Path) -> dict[str, Any]:
    """What ``config.json`` holds. Raises UserError if ``run_dir`` holds no run."""
    path = run_dir / CONFIG
    if not path.is_file():
        raise UserError(f"{run_dir} holds no run: {CONFIG} is missing")
    try:
        config = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    for entry in ENTRIES:
        if not isinstance(config, dict) or entry not in config:
            raise UserError(f"{path} is damaged: {entry!r} is missing")
    return config


def read_recipe(run_dir: Path, given: Recipe | None = None) -> Recipe:
    """The recipe of a run, with the objects that it names.

    Args:
      run_dir: the run.
      given: a recipe whose objects take the place of those that the run has no file for.

    Raises:
      UserError: if there is no run, or what it names cannot be found again; the message says where it
        was and how to give it.
    """
    config = read_config(run_dir)
    for setting in REFERENCES:
        origins.check_found(run_dir, setting, origins.named(config["recipe"], setting), config["search"])
    if not settings.has_objects(config["recipe"]):
        return settings.from_json(config["recipe"])
    objects = given or origins.recipe_of(run_dir, config)
    return settings.from_json(config["recipe"], objects)


def relocate(run_dir: Path, pairs: list[str]) -> None:
    """Gives a run the new places of what it names, ``tasks=./elsewhere.py:suite``.

    Raises:
      UserError: for another setting than a reference: a run keeps its recipe.
    """
    config = read_config(run_dir)
    for pair in pairs:
        name, _, text = pair.partition("=")
        old = origins.named(config["recipe"], name) if name in REFERENCES else None
        if not references.is_reference(old) or not references.is_reference(text):
            raise UserError(
                f"{pair} cannot change: a run keeps its recipe, only the place of {', '.join(REFERENCES)} can be "
                "given anew"
            )
        if name == "tasks":
            config["recipe"][name] = references.absolute(text)
        else:
            config["recipe"][name]["name"] = references.absolute(text)
        config["search"] = [*dict.fromkeys([*config["search"], str(references.folder_of(text))])]
    _write_config(run_dir, config)


def read_traits(run_dir: Path) -> list[dict[str, Any]]:
    """Traits of the tasks, as they were when the run started. Raises UserError if they are damaged."""
    try:
        return json.loads((run_dir / TASKS).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{run_dir / TASKS} is damaged: {error}") from error


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of ``metrics.jsonl``; none where nothing was run.

    A row that is unfinished, and all behind it, are left out: they will be computed again.
    """
    path, rows = run_dir / METRICS, []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def check_name(run_dir: Path) -> None:
    """Raises UserError for a name that Orbax cannot have, because Python could not decode it."""
    try:
        str(run_dir.resolve()).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the name of run directory {run_dir} has letters that Python cannot read with the encoding "
            f"{sys.getfilesystemencoding()}: set PYTHONUTF8=1, or choose another folder"
        ) from error


def check_writable(run_dir: Path) -> None:
    check_name(run_dir)
    if not os.access(run_dir, os.W_OK):
        raise UserError(f"cannot write to run directory {run_dir}: permission denied")


def _write_config(run_dir: Path, config: dict[str, Any]) -> None:
    (run_dir / UNFINISHED).write_text(json.dumps(config, indent=2) + "\n")
    (run_dir / UNFINISHED).rename(run_dir / CONFIG)
