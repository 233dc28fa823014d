"""A sweep: recipes x settings, a run directory for each, and the table that a job array reads by index."""

import itertools
import os
import re
from pathlib import Path
from typing import NamedTuple

from meta_train import recipes, settings
from metaopt import references
from metaopt.errors import UserError

TABLE = "sweep.tsv"  # name of the table in the folder of a sweep


class Run(NamedTuple):
    """One run of a sweep: a recipe with one combination of settings."""

    folder: Path  # run directory
    recipe: str  # name of the recipe, or reference to it
    settings: tuple[str, ...]  # changes to the recipe, name=value

    def line(self) -> str:
        """The line of the run in the table: the fields, separated by tabs."""
        return "\t".join([str(self.folder), self.recipe, *self.settings])


def plan(words: list[str], folder: Path) -> list[Run]:
    """The runs of every recipe with every combination of settings, in the order of ``words``.

    Args:
      words: recipes, and settings as ``name=value,value,...``. Commas inside brackets or
        quotes belong to the value.
      folder: folder of the sweep. The run directories in it are named after their recipe and the
        settings that have several values.

    Raises:
      UserError: if there is no recipe, a combination is not valid, or two runs are the same.
    """
    settings_ = [word for word in words if re.match(r"[\w.]+=", word)]  # a path may have an equals sign too
    names, grid = [word for word in words if word not in settings_], _grid(settings_)
    if not names:
        raise UserError(f"name the recipes of the sweep (known: {', '.join(recipes.names())})")
    runs: list[Run] = []
    seen: dict[str, Run] = {}
    for name, *values in itertools.product(names, *grid.values()):
        pairs = [f"{setting}={value}" for setting, value in zip(grid, values, strict=True)]
        varied = [_shown(pair) for pair, candidates in zip(pairs, grid.values(), strict=True) if len(candidates) > 1]
        run_dir = folder / _readable(",".join([recipes.label(name), *varied]))
        run = Run(run_dir, references.absolute(name), tuple(map(settings.absolute, pairs)))
        # Two runs are the same if their settings have the same values, e.g. 0.1 and 1e-1, or if their folders collide.
        for identity in (f"{name} {settings.override(recipes.find(name), pairs)}", str(run.folder)):
            if identity in seen:
                raise UserError(f"the sweep has one run twice: {_typed(seen[identity])} and {_typed(run)}")
            seen[identity] = run
        runs.append(run)
    return runs


def write(runs: list[Run], folder: Path) -> Path:
    """Writes the table and returns its path; an identical table may exist.

    Args:
      runs: result of ``plan``.
      folder: folder of the sweep.

    Raises:
      UserError: if the folder has the table of another sweep, or cannot be written.
    """
    table = folder / TABLE
    text = os.fsencode("".join(run.line() + "\n" for run in runs))  # paths, as the system has them
    if table.exists() and table.read_bytes() != text:
        raise UserError(f"{table} is of another sweep: choose another folder, or give the arguments of that sweep")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        table.write_bytes(text)
    except OSError as error:
        raise UserError(f"cannot write {table}: {error.strerror}") from error
    return table


def _grid(settings: list[str]) -> dict[str, list[str]]:
    grid: dict[str, list[str]] = {}
    for setting in settings:
        name, _, values = setting.partition("=")
        if name in grid:
            raise UserError(f"{name} is given twice: write all its values as {name}=value,value")
        grid[name] = _values(values)
        if "" in grid[name]:
            raise UserError(f"{setting} has an empty value: remove a comma")
    return grid


def _values(text: str) -> list[str]:
    """Splits at the commas outside brackets and quotes; a quoted value with a comma loses its quotes."""
    values, depth, quote = [""], 0, ""
    for character in text:
        if character == "," and not depth and not quote:
            values.append("")
            continue
        values[-1] += character
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in "([{") - (character in ")]}")
    return [value[1:-1] if "," in value and value[0] == value[-1] and value[0] in "'\"" else value for value in values]


def _shown(pair: str) -> str:
    """A setting as it appears in the name of a folder, with the label of a reference in place of its path."""
    name, _, value = pair.partition("=")
    return f"{name}={recipes.label(value)}" if settings.is_name(name) and references.is_reference(value) else pair


def _readable(name: str) -> str:
    return re.sub(r"[^\w.,=+-]+", "-", name)


def _typed(run: Run) -> str:
    return " ".join([run.recipe, *run.settings])
