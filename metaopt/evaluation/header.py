"""The first line of ``results.jsonl``: what was compared. By it an interrupted evaluation is known again."""

import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from metaopt import families
from metaopt.checks import is_ours
from metaopt.core import Task
from metaopt.evaluation import heldout
from metaopt.evaluation.compare import Method, Settings, method_trainer


def header_of(
    methods: Sequence[Method], tasks: Sequence[Task], settings: Settings, about: dict[str, Any]
) -> dict[str, Any]:
    """The header of a comparison, as JSON values; ``about`` is what it says besides."""
    from metaopt import __version__

    learned = {method.name: method.manifest for method in methods if method.manifest is not None}
    return about | {
        "learned": list(learned),
        "reference": methods[0].name,
        "methods": [method.name for method in methods],
        "tasks": [task.name for task in tasks],
        "num_steps": settings.num_steps,
        "seeds": settings.seeds,
        "tuning_seeds": settings.tuning_seeds,
        "draws": settings.draws,
        "rates": {method.name: method.rates for method in methods if method.manifest is None},
        "novelty": {
            name: {task.name: heldout.novelty(task.traits(), known.get("meta_trained_on")) for task in tasks}
            for name, known in learned.items()
        },
        "weights_sha256": {name: known.get("sha256") for name, known in learned.items()},
        "programs": {task.name: _program(task, methods, settings) for task in tasks},
        "versions": {"metaopt": __version__, "jax": jax.__version__},
        "device": jax.devices()[0].device_kind,
    }


def _program(task: Task, methods: Sequence[Method], settings: Settings) -> str:
    """A digest of what names and weights do not say: the settings of a task, and the code of a user's own.

    Objects of a user's may change and keep their names. What they compute is known by the program that they
    are lowered to, which is the same in every process.
    """
    digest = hashlib.sha256(repr(task).encode() if is_ours(task) else b"")
    for method in methods:
        if not (is_ours(task) and _is_known(method)):
            keys = jax.random.split(jax.random.key(0), settings.seeds)
            traced = method_trainer(task, method, settings).trace(jnp.array(method.rates), jax.random.key(0), keys)
            digest.update(traced.lower(lowering_platforms=("cpu",)).as_text().encode())
    return digest.hexdigest()[:16]


def _is_known(method: Method) -> bool:
    """Whether its name or its weights say what it is: a baseline of metaopt's, or weights of a family of metaopt's."""
    if method.manifest is None:
        known = families.baselines(method.kind).get(method.name)
        return known is not None and method.make is known.make
    return "sha256" in method.manifest and families.is_ours(method.manifest.get("family"))
