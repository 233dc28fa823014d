"""Experiments, one a file: purpose, cost and expected result in the first lines.

Here they are found by name; any other file that exports a ``recipe`` is found by its path.
"""

import ast
import importlib
import pkgutil
from pathlib import Path

from meta_train.recipe import Recipe
from metaopt import references
from metaopt.errors import UserError, unknown

EXPORT = "recipe"  # what a file calls its recipe


def names() -> list[str]:
    """The recipes that come with metaopt, as they are typed."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def find(name: str) -> Recipe:
    """The recipe of that name, or of a reference, e.g. ``./my_recipe.py`` or ``my_package.recipes:small``.

    Raises:
      UserError: naming the nearest, if there is none.
    """
    if name in names():
        return importlib.import_module(f"{__name__}.{name.replace('-', '_')}").recipe
    if not references.is_reference(name):
        raise unknown("recipe", name, names())
    found = references.resolve(name, EXPORT)
    if not isinstance(found, Recipe):
        raise UserError(f"{name} is no recipe but a {type(found).__name__}: it should be a meta_train.Recipe")
    return found


def source_of(name: str) -> str | None:
    """The reference of a recipe that does not come with metaopt; None for one that does."""
    return None if name in names() else references.absolute(name)


def label(name: str) -> str:
    """How a run of a recipe is called: its name, or the name of its file or module."""
    place, attribute = references.split(name)
    stem = Path(place).stem if place.endswith(".py") else place.rpartition(".")[2]
    return f"{stem}-{attribute}" if attribute and attribute != EXPORT else stem


def about(name: str) -> str:
    """The docstring of a recipe that comes with metaopt: purpose, cost, expected result."""
    path = Path(__path__[0]) / f"{name.replace('-', '_')}.py"
    return ast.get_docstring(ast.parse(path.read_bytes())) or ""
