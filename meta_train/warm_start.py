"""Meta-training that begins from trained weights, whole or in part."""

from collections.abc import Sequence

from metaopt import checkpoint
from metaopt.core import LearnedOptimizer, Theta
from metaopt.errors import UserError, unknown


def read(name: str, family: str, settings: dict) -> Theta:
    """The theta of a checkpoint. Raises UserError if it is of another optimizer."""
    found = checkpoint.read(name)
    theirs = found.manifest["family"], found.manifest["config"]
    if theirs != (family, settings):
        raise UserError(
            f"checkpoint {name} is {theirs[0]} with {theirs[1]}, the recipe asks for {family} with {settings}"
        )
    return found.theta


def begin_from(optimizer: LearnedOptimizer, theta: Theta, only: Sequence[str] = ()) -> LearnedOptimizer:
    """The same optimizer, whose meta-parameters start at ``theta``.

    Args:
      optimizer: that ``theta`` belongs to.
      theta: a dict.
      only: entries that are meta-parameters, the others are constants; empty means
        all. The fewer there are, the less noise evolution strategies make.
    """
    for name in only:
        if name not in theta:
            raise unknown("entry of theta", name, theta)
    chosen = {name: theta[name] for name in only or theta}
    return LearnedOptimizer(
        init=lambda key: chosen,
        bind=lambda part, num_steps=None: optimizer.bind({**theta, **part}, num_steps=num_steps),
    )
