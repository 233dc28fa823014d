"""Meta-training that starts from the weights of a checkpoint, all of them or chosen entries."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from meta_train.recipe import Family
from metaopt import checkpoint, families
from metaopt.checkpoint import Checkpoint
from metaopt.core import Algorithm, Learned, Theta
from metaopt.errors import UserError, unknown


class Source(NamedTuple):
    """Family and settings of the checkpoint in ``Family.start``."""

    family: Any  # name, reference or object
    settings: dict[str, Any]  # settings in its manifest


def source(family: Family) -> Source:
    """Family and settings of the checkpoint that meta-training starts from.

    A family or settings that the recipe gives as well have to be equal to those of the checkpoint;
    settings that the manifest does not contain have their defaults.

    Args:
      family: section of the recipe with ``start``.

    Raises:
      UserError: if there is no such checkpoint, it has another family or other settings, or its
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
    """The learned algorithm, with the weights of the checkpoint ``family.start`` as initial theta.

    Raises:
      UserError: as ``source``, or if the checkpoint is damaged or lacks an entry of ``family.only``.
    """
    found = read(family)
    return begin_from(found.learned, found.theta, family.only.split(",") if family.only else ())


def read(family: Family) -> Checkpoint:
    """The checkpoint that meta-training starts from. Raises UserError as ``source``, or if it is damaged."""
    return checkpoint.read(family.start, family=source(family).family)


def begin_from(learned: Learned, theta: Theta, only: Sequence[str] = ()) -> Learned:
    """The same algorithm, whose meta-parameters start at ``theta``.

    Args:
      learned: algorithm that ``theta`` belongs to.
      theta: trained meta-parameters, which have to be a dict if ``only`` is given.
      only: names of the entries that are meta-trained, while the others are constants; empty
        means all entries. The fewer entries, the smaller the variance of evolution strategies.

    Raises:
      UserError: if ``only`` is given and theta is not a dict, or has no such entry.
    """
    if not only:
        return learned._replace(init=lambda key: theta)
    if not isinstance(theta, dict):
        raise UserError(f"only={','.join(only)} names entries of a dict, and theta is a {type(theta).__name__}")
    for name in only:
        if name not in theta:
            raise unknown("entry of theta", name, theta)

    def bind(trained: Theta, num_steps: jax.Array | int | None = None, **others: Any) -> Algorithm:
        return learned.bind({**theta, **trained}, num_steps=num_steps, **others)

    return learned._replace(init=lambda key: {name: theta[name] for name in only}, bind=bind)
