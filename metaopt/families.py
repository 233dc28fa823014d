"""The kinds of learned algorithms, and the families of each.

A family is a way to build a ``core.Learned`` from settings. To add one, write a module with a
frozen dataclass ``Config`` and ``build(config) -> Learned``, and add its line to FAMILIES; the
contract tests find it there. Modules are imported when they are first used.
"""

import dataclasses
import importlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from metaopt import references
from metaopt.core import Algorithm, Key, Learned, Theta
from metaopt.errors import NO_DEFAULT, UserError, check_keywords, keywords_of, unknown


class Kind(NamedTuple):
    """What an algorithm does, and so which tasks it solves.

    Attributes:
      algorithm: what ``bind``, and with it ``metaopt.load``, returns.
      baselines: the module with its BASELINES, hand-written algorithms to compare with; "" where
        there are none.
    """

    algorithm: str
    baselines: str = ""


class Entry(NamedTuple):
    kind: str  # of KINDS
    module: str


class Baseline(NamedTuple):
    """A hand-written algorithm with one thing to tune.

    Attributes:
      make: ``(rate, num_steps) -> algorithm``; the rate is traced.
      rates: the grid that it is tuned over, on tuning seeds.
    """

    make: Callable[[jax.Array, int], Algorithm]
    rates: tuple[float, ...]


LONGEST = 2**31 - 1  # steps are counted in int32

KINDS = {
    "drift": Kind(
        "drift(log_ratio, advantage, progress=None), a term of a policy's loss", "metaopt.objectives.baselines"
    ),
    "forecast": Kind("forecast(history, steps), parameters some steps ahead"),
    "optimizer": Kind("an optax.GradientTransformationExtraArgs", "metaopt.optimizers.baselines"),
    "search": Kind("an evosax algorithm: init, ask, tell"),
    "update_rule": Kind("a metaopt.core.UpdateRule, whose loss of a rollout updates an agent"),
}

FAMILIES = {
    "celo": Entry("optimizer", "metaopt.optimizers.celo"),
    "celo2": Entry("optimizer", "metaopt.optimizers.celo2"),
    "coordinate_lstm": Entry("optimizer", "metaopt.optimizers.coordinate_lstm"),
    "disco": Entry("update_rule", "metaopt.objectives.disco"),
    "dpo": Entry("drift", "metaopt.objectives.dpo"),
    "hand": Entry("optimizer", "metaopt.optimizers.hand"),
    "l2o_pa": Entry("optimizer", "metaopt.optimizers.l2o_pa"),
    "lpg": Entry("update_rule", "metaopt.objectives.lpg"),
    "lpo": Entry("drift", "metaopt.objectives.lpo"),
    "mlp": Entry("optimizer", "metaopt.optimizers.mlp"),
    "open": Entry("optimizer", "metaopt.optimizers.open"),
    "ppo": Entry("drift", "metaopt.objectives.ppo"),
    "small_fc": Entry("optimizer", "metaopt.optimizers.small_fc"),
    "ta_lpo": Entry("drift", "metaopt.objectives.ta_lpo"),
    "velo": Entry("optimizer", "metaopt.optimizers.velo"),
}


def build(family: Any, **settings: Any) -> Learned:
    """Builds a learned algorithm, e.g. ``build("small_fc", hidden=8)``.

    Args:
      family: a name of FAMILIES; a reference to, or the object itself: a ``Learned``, a module (or
        whatever has them) with ``Config`` and ``build``, or a function ``(**settings) -> Learned``.
      settings: fields of its ``Config``, or arguments of the function.

    Raises:
      UserError: for a family or a setting that does not exist (the nearest names are listed), or a
        setting of the wrong type or value.
    """
    name, found = label(family), find(family)
    if not isinstance(found, Learned):
        settings = _as_tuples(settings, _settings(found)[0])
    if isinstance(found, Learned):
        if settings:
            raise UserError(f"{name} is a Learned and takes no settings, got {', '.join(settings)}")
        learned = found
    else:
        check_settings(name, found, settings)
        try:
            learned = found.build(found.Config(**settings)) if _is_module(found) else found(**settings)
        except UserError:
            raise
        except Exception as error:
            what = "" if isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: "
            raise UserError(f"{name}: {what}{error}") from error
    if not isinstance(learned, Learned):
        raise UserError(f"{name}: a family builds a metaopt.core.Learned, this one built {type(learned).__name__}")
    if learned.kind not in KINDS:
        raise unknown(f"kind of {name}", learned.kind, KINDS)
    return learned._replace(init=_narrow(learned.init), bind=_checked(learned.bind))


def find(family: Any) -> Any:
    """What a name or a reference stands for; anything else stands for itself.

    Raises:
      UserError: if it is nothing that ``build`` takes.
    """
    if isinstance(family, str) and family in FAMILIES:
        return importlib.import_module(FAMILIES[family].module)
    if isinstance(family, str) and not references.is_reference(family):
        raise unknown("family", family, FAMILIES)
    found = references.resolve(family) if isinstance(family, str) else family
    if _is_module(found) and not dataclasses.is_dataclass(found.Config):
        raise UserError(f"family {label(family)}: its Config must be a dataclass")
    if isinstance(found, Learned) or _is_module(found) or callable(found):
        return found
    raise UserError(
        f"{label(family)} is no family: give a metaopt.core.Learned, a module with Config and build, or a function "
        f"that returns a Learned; got {type(found).__name__}"
    )


def is_ours(family: Any) -> bool:
    """Whether this is the name of a family of metaopt's own, which a checkpoint may name."""
    return isinstance(family, str) and family in FAMILIES


def label(family: Any) -> str:
    """How messages call a family."""
    return family if isinstance(family, str) else getattr(family, "__name__", type(family).__name__)


def defaults(family: Any) -> dict[str, Any]:
    """The settings of a family with their defaults; those without one are left out."""
    found = find(family)
    if isinstance(found, Learned):
        return {}
    return {name: value for name, value in _settings(found)[0].items() if value is not NO_DEFAULT}


def check_settings(name: str, found: Any, settings: dict[str, Any]) -> None:
    """Raises UserError for a setting that the family does not have, or of another type than its default."""
    check_keywords(f"setting of {name}", settings, *_settings(found))


def baselines(kind: str) -> dict[str, Baseline]:
    """Hand-written algorithms of a kind by name; empty where there are none."""
    module = KINDS[kind].baselines
    return importlib.import_module(module).BASELINES if module else {}


def _as_tuples(settings: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Lists, as JSON has them, as tuples where the default is one."""
    is_tuple = {name for name, value in settings.items() if isinstance(defaults.get(name), tuple)}
    return {n: tuple(v) if n in is_tuple and isinstance(v, list) else v for n, v in settings.items()}


def _is_module(found: Any) -> bool:
    return hasattr(found, "Config") and hasattr(found, "build")


def _settings(found: Any) -> tuple[dict[str, Any], bool]:
    """Settings with their defaults, and whether others are taken as well."""
    if not _is_module(found):
        return keywords_of(found)
    fields = dataclasses.fields(found.Config)
    return {f.name: NO_DEFAULT if f.default is dataclasses.MISSING else f.default for f in fields}, False


def check_num_steps(num_steps: Any) -> None:
    """Raises UserError unless this can be the planned length of training; a traced one cannot be checked.

    It is a whole number from 1 to LONGEST, a Python number or a () array; None where it is not known.
    """
    if num_steps is None or isinstance(num_steps, Tracer):
        return
    is_number = not isinstance(num_steps, str | bytes | bool | np.bool_) and np.ndim(num_steps) == 0
    try:
        value = float(num_steps) if is_number else math.nan
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not (value.is_integer() and 1 <= value <= LONGEST):
        raise UserError(
            f"num_steps, the planned length of training, is a whole number of steps from 1 to {LONGEST:,}, got "
            f"{num_steps!r}"
        )


def _checked(bind: Callable[..., Algorithm]) -> Callable[..., Algorithm]:
    """The same for a length of training that is one."""

    def bind_checked(theta: Theta, num_steps: jax.Array | int | None = None) -> Algorithm:
        check_num_steps(num_steps)
        return bind(theta, num_steps=num_steps)

    return bind_checked


def _narrow(init: Callable[[Key], Theta]) -> Callable[[Key], Theta]:
    """The same with theta of float32 everywhere, with jax_enable_x64 too: it is what checkpoints hold."""

    def init_float32(key: Key) -> Theta:
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), init(key))

    return init_float32
