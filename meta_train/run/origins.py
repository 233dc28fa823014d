"""Where the code that a recipe names is found, when a run begins and when it goes on."""

from pathlib import Path
from typing import Any

from meta_train.recipe import Recipe
from meta_train.recipes import EXPORT
from metaopt import checkpoint, families, references
from metaopt.errors import UserError

COPY = "recipe.py"  # the run's copy of the recipe's file


def family_label(recipe: Recipe, source: str | None) -> str:
    """What a checkpoint of the run will say of its family: a name, or what a user can give as family=."""
    name = recipe.family.name
    if not name:
        return checkpoint.read_manifest(recipe.family.start)["family"]
    if families.is_ours(name):
        return name
    if isinstance(name, str):
        return _without_folder(name)
    if source:
        module = references.resolve(references.split(source)[0])
        for attribute, value in vars(module).items():
            if value is name:
                return _without_folder(f"{references.split(source)[0]}:{attribute}")
    return f"<{families.label(name)}>"


def _without_folder(reference: str) -> str:
    """A checkpoint goes to other machines: of a path it keeps the name of the file."""
    return reference.rpartition("/")[2]


def of(recipe: Recipe, source: str | None) -> dict[str, Any]:
    """Where foreign names came from: the recipe's own file, and the folders of all references."""
    named = [recipe.family.name, recipe.tasks, recipe.estimator.name, source]
    folders = [str(references.folder_of(name)) for name in named if references.is_reference(name)]
    return {"source": references.absolute(source) if source else None, "search": [*dict.fromkeys(folders)]}


def recipe_of(run_dir: Path, config: dict[str, Any]) -> Recipe:
    """The recipe that its file exports, for its objects."""
    source = config["source"]
    if source is None:
        raise UserError(
            f"{run_dir} was begun in Python with objects that have no name: go on there, with "
            f"meta_train.resume({str(run_dir)!r}, recipe)"
        )
    place, name = references.split(source)
    copy = run_dir / COPY
    try:
        # The original itself as long as it is the same: files beside it are where it expects them.
        if _is_unchanged(source, copy, config["search"]):
            return references.resolve(source, EXPORT, config["search"])
        return references.attribute(references.load_file(copy, config["search"]), name or EXPORT, place)
    except UserError as error:
        raise UserError(
            f"{error}; {copy} is the copy of {source} that this run goes by: what it imports lay in "
            f"{', '.join(config['search'])}, put it back there or add its folder to PYTHONPATH"
        ) from error


def check_found(run_dir: Path, setting: str, name: Any, search: list[str]) -> None:
    if not references.is_reference(name):
        return
    try:
        references.resolve(name, search=search)
    except UserError as error:
        raise UserError(
            f"{run_dir} has {setting}={name} ({error}): put it back, or give its new place with metaopt train --resume "
            f"{run_dir} {setting}=path/to/file.py:name"
        ) from error


def named(values: dict[str, Any], setting: str) -> Any:
    return values["tasks"] if setting == "tasks" else values[setting]["name"]


def _is_unchanged(source: str, copy: Path, search: list[str]) -> bool:
    """Whether the recipe's own file is still there, and what it was when the run began."""
    place, _ = references.split(source)
    try:
        if not place.endswith(".py"):
            references.resolve(place, search=search)
        return references.file_of(source).read_bytes() == copy.read_bytes()
    except (UserError, OSError):
        return False
