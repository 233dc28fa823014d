"""Meta-gradient estimators: ``(problem, config, mesh, **options) -> Estimator``.

To add one, write its constructor and add its line to ESTIMATORS; the contract tests
find it there.
"""

from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from meta_train.estimators import backprop, bmg, es, forward, pes_analytic
from meta_train.estimators.samples import Sampling
from metaopt import references
from metaopt.core import Estimator, InnerProblem
from metaopt.errors import UserError, check_keywords, keywords_of, unknown

ESTIMATORS = {
    "backprop": backprop.backprop,
    "bmg": bmg.bmg,
    "dodge": forward.dodge,
    "es": es.full_es,
    "es_gen": es.es_gen,
    "es_single": es.es_single,
    "gpes": es.gpes,
    "pes": es.pes,
    "pes_analytic": pes_analytic.pes_analytic,
    "rtrl": forward.rtrl,
    "tbptt": backprop.tbptt,
    "truncated_es": es.truncated_es,
}


def build(name: Any, problem: InnerProblem, config: Sampling, mesh: Mesh, **options: Any) -> Estimator:
    """Builds an estimator, e.g. ``build("gpes", problem, config, mesh, windows_per_draw=4)``.

    Args:
      name: name in ESTIMATORS, reference to a constructor, or the constructor itself.
      problem: inner problem that the meta-gradient is taken through.
      config: settings that all estimators share.
      mesh: devices that the samples are sharded over.
      options: keyword arguments of the constructor.

    Raises:
      UserError: for an unknown estimator or option, or an option of the wrong type.
    """
    check(name, options)
    try:
        return find(name)(problem, config, mesh, **options)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"estimator {label(name)}: its constructor is called as (problem, config, mesh, **options) and fails: "
            f"{type(error).__name__}: {error}"
        ) from error


def find(name: Any) -> Callable[..., Any]:
    """The constructor that a name or a reference stands for; a constructor stands for itself.

    Raises:
      UserError: for an unknown name, or if what is found is not callable.
    """
    if isinstance(name, str) and name in ESTIMATORS:
        return ESTIMATORS[name]
    if isinstance(name, str) and not references.is_reference(name):
        raise unknown("estimator", name, ESTIMATORS)
    found: Any = references.resolve(name) if isinstance(name, str) else name
    if not callable(found):
        raise UserError(
            f"{name} is no estimator: give a constructor (problem, config, mesh, **options) -> Estimator, got "
            f"{type(found).__name__}"
        )
    return found


def check(name: Any, options: dict[str, Any]) -> None:
    """Raises UserError for an unknown estimator, an unknown option of it, or an option of the wrong type."""
    check_keywords(f"option of {label(name)}", options, *keywords_of(find(name), skip=3))


def label(name: Any) -> str:
    """The name of an estimator in messages."""
    return name if isinstance(name, str) else getattr(name, "__name__", type(name).__name__)
