"""Meta-training that begins from trained weights, whole or in part."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from meta_train.recipe import Family
from metaopt import checkpoint, families
from metaopt.checkpoint import Checkpoint
from metaopt.core import Algorithm, Learned, Theta
from metaopt.errors import UserError, unknown


class Source(NamedTuple):
    """What the checkpoint in ``start`` implies: its family and settings."""

    family: Any  # name, reference or object
    settings: dict[str, Any]


def source(family: Family) -> Source:
    """Family and settings of the checkpoint that is begun from.

    What a recipe gives besides has to be the same, as values: settings that are left out have their
    defaults.

    Raises:
      UserError: if there is no such checkpoint, it is of another family or has other settings, or its
        family is not one of metaopt's and the recipe does not name it.
    """
    manifest = checkpoint.read_manifest(family.start)
    theirs, name = manifest["family"], family.name or manifest["family"]
    if not families.is_ours(name) and not family.name:
        raise UserError(
            f"checkpoint {family.start} is of the family {theirs!r}, which metaopt does not have: give it with family="
        )
    if families.is_ours(name) and name != theirs:
        raise UserError(
            f"checkpoint {family.start} is of the family {theirs}, the recipe asks for {name}: leave it out"
        )
    settings = families.defaults(name) | manifest["config"]
    for setting, value in family.settings.items():
        if setting not in settings:
            raise unknown(f"setting of {families.label(name)}", setting, settings)
        if settings[setting] != value:
            raise UserError(
                f"checkpoint {family.start} has {setting}={settings[setting]!r}, the recipe asks for {value!r}: leave "
                "it out"
            )
    return Source(name, manifest["config"])


def learned(family: Family) -> Learned:
    """The learned algorithm that begins at ``family.start``.

    Raises:
      UserError: as ``source``, or if the checkpoint is damaged or has no entry of ``family.only``.
    """
    found = read(family)
    return begin_from(found.learned, found.theta, family.only.split(",") if family.only else ())


def read(family: Family) -> Checkpoint:
    """The checkpoint that is begun from. Raises UserError as ``source``, or if it is damaged."""
    return checkpoint.read(family.start, family=source(family).family)


def begin_from(learned: Learned, theta: Theta, only: Sequence[str] = ()) -> Learned:
    """The same algorithm, whose meta-parameters start at ``theta``.

    Args:
      learned: what ``theta`` belongs to.
      theta: with ``only``, a dict.
      only: entries that are meta-parameters, the others are constants; empty means
        all. The fewer there are, the less noise evolution strategies make.
    """
    if not only:
        return learned._replace(init=lambda key: theta)
    if not isinstance(theta, dict):
        raise UserError(f"only={','.join(only)} names entries of a dict, and theta is a {type(theta).__name__}")
    for name in only:
        if name not in theta:
            raise unknown("entry of theta", name, theta)

    def bind(chosen: Theta, num_steps=None, **others: Any) -> Algorithm:
        return learned.bind({**theta, **chosen}, num_steps=num_steps, **others)

    return learned._replace(init=lambda key: {name: theta[name] for name in only}, bind=bind)
