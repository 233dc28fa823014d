"""Recipes as text: ``name=value`` on the command line, JSON in a run directory."""

import ast
import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from meta_train.recipe import SECTIONS, Recipe
from metaopt import checkpoint, references
from metaopt.errors import UserError, check_type, unknown

DEFAULT = "default"  # the value that sets a setting back
OBJECT = "object"  # in JSON: the key that stands for an object without a name


class Place(NamedTuple):
    """Where a setting is: a field of a section, or an entry of a field that is a dict."""

    section: str
    field: str
    entry: str = ""


def override(recipe: Recipe, pairs: Sequence[str]) -> Recipe:
    """Applies ``name=value`` settings to a recipe.

    A setting is named by its section, ``estimator.sigma``, or bare, ``sigma``, where only one section
    has it; the name of a section alone is what it is about, ``estimator=pes``. Entries of a dict are
    ``settings.hidden=8`` and ``options.ahead=4``. The value "default" sets a setting back to its default,
    or removes an entry.

    What belongs to something else goes with it: another ``family=`` takes the recipe's ``settings`` away,
    another ``estimator=`` its ``options``, and ``start=CHECKPOINT``, which implies both, family and settings.

    Raises:
      UserError: for a name that is unknown or ambiguous, or a value of another type than the default's.
    """
    tasks, sections = recipe.tasks, {name: _fields(getattr(recipe, name)) for name in SECTIONS}
    given = [(name, text, locate(name)) for name, text in map(_split, pairs) if name != "tasks"]
    for _, text, place in given:  # first: the order in which settings are typed does not matter
        _forget(sections[place.section], place, text)
    for pair in pairs:
        if pair.startswith("tasks="):
            tasks = references.absolute(_split(pair)[1])
    for name, text, place in given:
        values = sections[place.section]
        if place.entry:
            values[place.field] = _with_entry(values[place.field], place.entry, text)
        else:
            values[place.field] = _typed(name, text, defaults(place.section)[place.field])
    built = {name: SECTIONS[name](**values) for name, values in sections.items()}
    return Recipe(tasks=tasks, **built)


def locate(name: str) -> Place:
    """The setting that a name means. Raises UserError, naming the nearest, if there is none or more than one."""
    first, *rest = name.split(".")
    if first in SECTIONS:
        section, (field, *entry) = first, rest or ["name"]
    else:
        section, field, entry = "", first, rest
    if section and field not in defaults(section):
        raise unknown(f"setting of {section}", field, defaults(section))
    sections = [s for s in SECTIONS if field in defaults(s) and (not section or s == section)]
    if not sections:
        raise unknown("setting", name, names())
    if len(sections) > 1:
        raise UserError(f"{name} is a setting of {' and '.join(sections)}: write {' or '.join(sections)}")
    is_dict = isinstance(defaults(sections[0])[field], dict)
    if entry and not is_dict:
        raise unknown("setting", name, names())
    return Place(sections[0], field, ".".join(entry))


def absolute(pair: str) -> str:
    """A setting in words that mean the same in any working directory."""
    name, text = _split(pair)
    if name != "tasks" and locate(name)[:2] == ("family", "start"):
        return f"{name}={_absolute_folder(text)}"
    return f"{name}={references.absolute(text)}" if is_name(name) else pair


def is_name(setting: str) -> bool:
    """Whether the value of a setting is a name, or a reference in its place."""
    return setting == "tasks" or locate(setting).field == "name"


def names() -> list[str]:
    """All settings as they are typed, bare where that is unique."""
    every = [field for section in SECTIONS for field in defaults(section)]
    bare = {field for field in every if every.count(field) == 1}
    about = {section for section in SECTIONS if "name" in defaults(section)}
    return sorted(bare | about | {"tasks"})


def defaults(section: str) -> dict[str, Any]:
    """The fields of a section with their defaults."""
    return {
        field.name: field.default_factory() if callable(field.default_factory) else field.default
        for field in dataclasses.fields(SECTIONS[section])
    }


def to_json(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain values; an object without a name is ``{"object": ...}``.

    Raises:
      UserError: for a setting of the family or an option of the estimator that JSON cannot hold.
    """
    sections = {name: _fields(getattr(recipe, name)) for name in SECTIONS}
    for name in ("family", "estimator", "strategy"):
        sections[name]["name"] = _name_or_object(sections[name]["name"])
    for name, field in (("family", "settings"), ("estimator", "options")):
        for setting, value in sections[name][field].items():
            _check_json(f"{field}.{setting}", value)
    values = {"family": sections.pop("family"), "tasks": _tasks_to_json(recipe.tasks), **sections}
    if recipe.family.start:
        values["family"]["start"] = _absolute_folder(recipe.family.start)
    return json.loads(json.dumps(values))  # as it will be read again: tuples are lists


def from_json(values: dict[str, Any], objects: Recipe | None = None) -> Recipe:
    """The recipe of ``to_json``.

    Args:
      values: sections, and tasks.
      objects: a recipe that has the objects in the places where JSON has none.

    Raises:
      UserError: for a section or setting that does not exist, or an object that is missing.
    """
    for name in values:
        if name != "tasks" and name not in SECTIONS:
            raise unknown("section", name, [*SECTIONS, "tasks"])
    sections = {}
    for section, fields in values.items():
        if section == "tasks":
            continue
        for field in fields:
            if field not in defaults(section):
                raise unknown(f"setting of {section}", field, defaults(section))
        sections[section] = SECTIONS[section](
            **{field: _object_or(value, objects, section, field) for field, value in fields.items()}
        )
    return Recipe(tasks=_object_or(values["tasks"], objects, "tasks", ""), **sections)


def has_objects(values: dict[str, Any]) -> bool:
    """Whether the JSON of a recipe has objects without a name."""
    return any(_is_object(value) for value in _named(values))


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """What differs between two recipes as JSON: ``name=theirs (asked for ours)``."""
    different = []
    for section in ("tasks", *SECTIONS):
        mine, other = ours[section], theirs[section]
        if section == "tasks" or mine == other:
            if mine != other:
                different.append(f"tasks={other!r} (asked for {mine!r})")
            continue
        different += [f"{f}={other.get(f)!r} (asked for {mine[f]!r})" for f in mine if mine[f] != other.get(f)]
    return different


def _forget(values: dict[str, Any], place: Place, text: str) -> None:
    """Takes out of a section what belonged to another family or estimator than is now asked for."""
    if place.field == "start" and text not in ("", DEFAULT):
        values |= {"name": "", "settings": {}}
    elif place.field == "name" and references.absolute(text) != values["name"]:
        values |= {field: {} for field in ("settings", "options") if field in values}


def _fields(section: Any) -> dict[str, Any]:
    """As ``dataclasses.asdict``, which would copy objects."""
    values = {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}
    return {name: dict(value) if isinstance(value, dict) else value for name, value in values.items()}


def _split(pair: str) -> tuple[str, str]:
    name, equals, text = pair.partition("=")
    if not equals:
        raise UserError(f"settings are given as name=value, got {pair!r}")
    return name, text


def _with_entry(values: dict[str, Any], entry: str, text: str) -> dict[str, Any]:
    if text == DEFAULT:
        return {name: value for name, value in values.items() if name != entry}
    return values | {entry: _literal(text)}


def _typed(name: str, text: str, default: Any) -> Any:
    if text == DEFAULT:
        return default
    if isinstance(default, str):
        return references.absolute(text) if references.is_reference(text) else text
    value = _literal(text)
    check_type(name, text if isinstance(value, str) else value, default)
    return float(value) if isinstance(default, float) else value


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _name_or_object(value: Any) -> Any:
    if isinstance(value, str):
        return references.absolute(value) if references.is_reference(value) else value
    return {OBJECT: getattr(value, "__name__", None) or getattr(value, "name", type(value).__name__)}


def _tasks_to_json(tasks: Any) -> Any:
    if isinstance(tasks, list | tuple) and all(isinstance(task, str) for task in tasks):
        return [_name_or_object(task) for task in tasks]
    if isinstance(tasks, list | tuple):
        return {OBJECT: ", ".join(getattr(task, "name", str(task)) for task in tasks)}
    return _name_or_object(tasks)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {OBJECT}


def _named(values: dict[str, Any]) -> Iterable[Any]:
    yield values["tasks"]
    for section in ("family", "estimator", "strategy"):
        yield values[section]["name"]


def _object_or(value: Any, objects: Recipe | None, section: str, field: str) -> Any:
    if section != "tasks" and field != "name" or not _is_object(value):
        return value
    if objects is None:
        raise UserError(f"the {section} is an object made in Python, {value[OBJECT]}: give the recipe that has it")
    return objects.tasks if section == "tasks" else getattr(getattr(objects, section), field)


def _check_json(name: str, value: Any) -> None:
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} must be a plain value that JSON can hold, got {type(value).__name__}") from error
    if (
        json.dumps(json.loads(text)) != text
        or isinstance(value, dict)
        and not all(isinstance(key, str) for key in value)
    ):
        raise UserError(f"{name} must be a plain value that JSON can hold; the keys of a dict must be texts")


def _absolute_folder(name: str) -> str:
    return os.path.abspath(Path(name).expanduser()) if checkpoint.is_path(name) else name
