"""Meta-gradient estimators: ``(problem, config, mesh, **options) -> Estimator``.

To add one, write its constructor and add its line to ESTIMATORS; the contract tests
find it there.
"""

import inspect

from jax.sharding import Mesh

from meta_train.estimators import backprop, bmg, es, forward, pes_analytic
from meta_train.estimators.samples import Config
from metaopt.core import Estimator, InnerProblem
from metaopt.errors import check_type, unknown

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


def build(name: str, problem: InnerProblem, config: Config, mesh: Mesh, **options) -> Estimator:
    """The estimator of that name, with the options of its constructor."""
    check(name, options)
    return ESTIMATORS[name](problem, config, mesh, **options)


def check(name: str, options: dict) -> None:
    """Raises UserError for an unknown estimator, or an option it does not have or not of this type."""
    if name not in ESTIMATORS:
        raise unknown("estimator", name, ESTIMATORS)
    known = dict(list(inspect.signature(ESTIMATORS[name]).parameters.items())[3:])
    for option, value in options.items():
        if option not in known:
            raise unknown(f"option of {name}", option, known)
        check_type(f"{name}: {option}", value, known[option].default)
