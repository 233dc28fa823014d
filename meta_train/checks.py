"""What is wrong with a recipe's own family, tasks or estimator, said by name before anything runs."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from meta_train import estimators
from meta_train.estimators import ESTIMATORS
from meta_train.recipe import Recipe
from metaopt import families
from metaopt.checks import check_bind, check_same, check_task, check_theta, is_ours, leaf_path, trace
from metaopt.core import Algorithm, Estimator, Learned, PyTree, Task, Theta
from metaopt.errors import UserError

METRICS = ("meta_loss", "inner_steps", "num_valid")  # of every estimator


def check(recipe: Recipe, learned: Learned, tasks: Sequence[Task]) -> None:
    """Raises UserError for a family or a task that does not keep its contract, see ``metaopt.core``."""
    if not tasks:
        raise UserError("a recipe needs a task, and tasks is empty")
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two tasks are called {name!r}: give each a name of its own")
    own_family = bool(recipe.family.name) and not families.is_ours(recipe.family.name)
    own_tasks = [task for task in tasks if own_family or not is_ours(task)]
    if not own_tasks:
        return
    name = families.label(recipe.family.name or recipe.family.start)
    theta = check_theta(learned, name)
    check_bind(learned, name, theta)

    def bind(theta: Theta, num_steps: jax.Array) -> Algorithm:
        return learned.bind(theta, num_steps=num_steps)

    for task in own_tasks:
        check_task(task, bind, theta, jnp.int32(recipe.episodes.longest))


def check_estimators(recipe: Recipe, learned: Learned, built: Sequence[Estimator], num_devices: int) -> None:
    """Raises UserError for a user's estimator that does not keep its contract, see ``metaopt.core``."""
    if isinstance(recipe.estimator.name, str) and recipe.estimator.name in ESTIMATORS:
        return
    theta = jax.eval_shape(learned.init, jax.random.key(0))
    for estimator in built:
        _check_estimator(f"estimator {estimators.label(recipe.estimator.name)}", estimator, theta, num_devices)


def _check_estimator(name: str, estimator: Any, theta: PyTree, num_devices: int) -> None:
    if not hasattr(estimator, "init") or not hasattr(estimator, "estimate"):
        raise UserError(
            f"{name}: its constructor returns a metaopt.core.Estimator, this one {type(estimator).__name__}"
        )
    state = trace(f"{name}: init", estimator.init, theta, jax.random.key(0))
    for path, leaf in jax.tree.leaves_with_path(state):
        if not leaf.shape or leaf.shape[0] % num_devices:
            raise UserError(
                f"{name}: the state at {leaf_path(path)} has shape {leaf.shape}, it lacks the sample axis: "
                f"every leaf begins with an axis of num_samples, which the {num_devices} devices divide"
            )
    estimated = trace(f"{name}: estimate", estimator.estimate, theta, state, jnp.int32(0))
    if not isinstance(estimated, tuple) or len(estimated) != 3:
        raise UserError(f"{name}: estimate returns (grad, state, metrics), this one {type(estimated).__name__}")
    grad, after, metrics = estimated
    if not isinstance(metrics, dict):
        raise UserError(f"{name}: its metrics are a dict, got {type(metrics).__name__}")
    check_same(f"{name}: the gradient", theta, grad, "theta", "estimate")
    check_same(f"{name}: the state", state, after, "init", "estimate")
    for metric in METRICS:
        if metric not in metrics:
            raise UserError(f"{name}: its metrics lack {metric!r}, they have {', '.join(metrics) or 'nothing'}")
    for metric, value in metrics.items():
        if jnp.shape(value):
            raise UserError(f"{name}: the metric {metric!r} must be a scalar, it has shape {jnp.shape(value)}")
