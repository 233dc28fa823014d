"""What is wrong with a user's own family, task or estimator, said by name before anything runs.

Every method is traced once with shapes alone, and a second time to see that it is pure. Ours are
held to the same contracts by tests, and are not traced here.
"""

import json
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from meta_train.estimators import ESTIMATORS
from meta_train.inner import episodes
from meta_train.recipe import Recipe
from metaopt import families
from metaopt.core import Estimator, Learned, PyTree, Task
from metaopt.errors import UserError

OURS = [Path(__file__).resolve().parents[1] / package for package in ("metaopt", "tasks", "meta_train")]
METRICS = ("meta_loss", "inner_steps", "num_valid")  # of every estimator
TRAITS = {"family": str, "datasets": list, "architecture": dict}


def check(recipe: Recipe, learned: Learned, tasks: Sequence[Task]) -> None:
    """Raises UserError for a family or a task that does not keep its contract, see ``metaopt.core``."""
    foreign = not recipe.family.start and not families.is_ours(recipe.family.name)
    theta = _theta(learned, families.label(recipe.family.name or recipe.family.start), foreign)
    if not tasks:
        raise UserError("a recipe needs a task, and tasks is empty")
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two tasks are called {name!r}: give each a name of its own")
    for task in tasks:
        if foreign or type(task).__module__.partition(".")[0] != "tasks":
            _check_task(task, learned, theta, recipe.episodes)


def check_estimators(recipe: Recipe, learned: Learned, built: Sequence[Estimator], num_devices: int) -> None:
    """Raises UserError for a user's estimator that does not keep its contract, see ``metaopt.core``."""
    if recipe.estimator.name in list(ESTIMATORS):
        return
    theta = jax.eval_shape(learned.init, jax.random.key(0))
    for estimator in built:
        _check_estimator(f"estimator {_label(recipe.estimator.name)}", estimator, theta, num_devices)


def _theta(learned: Learned, name: str, foreign: bool) -> PyTree:
    if not foreign:
        return jax.eval_shape(learned.init, jax.random.key(0))
    theta = _trace(f"family {name}: init", learned.init, jax.random.key(0))
    if not jax.tree.leaves(theta):
        raise UserError(f"family {name}: init returns no meta-parameters, there is nothing to train")
    return theta


def _check_task(task: Task, learned: Learned, theta: PyTree, config: episodes.Episodes) -> None:
    name = f"task {task.name}"
    _check_traits(name, task)
    key = jax.random.key(0)
    task_params = _trace(f"{name}: sample", task.sample, key)
    x = _trace(f"{name}: init", task.init, task_params, key)

    def start(theta, num_steps, task_params, x):
        return task.start(learned.bind(theta, num_steps=num_steps), task_params, x)

    def step(theta, num_steps, task_params, state, key):
        return task.step(learned.bind(theta, num_steps=num_steps), task_params, state, key)

    num_steps = jnp.int32(config.longest)
    state = _trace(f"{name}: start", start, theta, num_steps, task_params, x)
    stepped = _trace(f"{name}: step", step, theta, num_steps, task_params, state, key)
    if not isinstance(stepped, tuple) or len(stepped) != 2:
        raise UserError(f"{name}: step returns (state, loss), this one {type(stepped).__name__}")
    after, loss = stepped
    _check_scalar(f"{name}: the loss that step returns", loss)
    _check_same(f"{name}: the state", state, after, "start", "step")
    solution = _trace(f"{name}: solution", task.solution, state)
    _check_same(f"{name}: what is worked on", x, solution, "init", "solution")
    for split in ("train", "valid", "test"):
        for given in (key, None):

            def evaluate(task_params, x, split=split, given=given):
                return task.evaluate(task_params, x, split, given)

            asked = f"{name}: evaluate(..., {split!r}, {'key' if given is not None else 'None'})"
            measures = _trace(asked, evaluate, task_params, x)
            if not isinstance(measures, dict) or "loss" not in measures:
                had = ", ".join(measures) if isinstance(measures, dict) else type(measures).__name__
                raise UserError(
                    f'{asked} must return a dict with "loss", the smaller the better; has {had or "nothing"}'
                )
            for measure, value in measures.items():
                _check_scalar(f"{asked}: {measure!r}", value)
    leaked = [field for field, value in vars(task).items() if isinstance(value, Tracer)]
    if leaked:
        raise UserError(
            f"{name} keeps {', '.join(leaked)} of a traced call: return it in the state, methods must be pure"
        )


def _check_traits(name: str, task: Task) -> None:
    try:
        traits = json.loads(json.dumps(task.traits()))
    except TypeError as error:
        raise UserError(f"{name}: traits must be plain JSON values: {error}") from error
    for trait, kind in TRAITS.items():
        if not isinstance(traits.get(trait) if isinstance(traits, dict) else None, kind):
            raise UserError(
                f"{name}: traits must have {trait!r}, a {kind.__name__}: it decides whether a task is held out"
            )


def _check_estimator(name: str, estimator: Any, theta: PyTree, num_devices: int) -> None:
    if not hasattr(estimator, "init") or not hasattr(estimator, "estimate"):
        raise UserError(
            f"{name}: its constructor returns a metaopt.core.Estimator, this one {type(estimator).__name__}"
        )
    state = _trace(f"{name}: init", estimator.init, theta, jax.random.key(0))
    for path, leaf in jax.tree.leaves_with_path(state):
        if not leaf.shape or leaf.shape[0] % num_devices:
            raise UserError(
                f"{name}: the state's leaf {_path(path)} has shape {leaf.shape}, it lacks the sample axis: every leaf "
                f"begins with an axis of num_samples, which the {num_devices} devices divide"
            )
    estimated = _trace(f"{name}: estimate", estimator.estimate, theta, state, jnp.int32(0))
    if not isinstance(estimated, tuple) or len(estimated) != 3:
        raise UserError(f"{name}: estimate returns (grad, state, metrics), this one {type(estimated).__name__}")
    grad, after, metrics = estimated
    _check_same(f"{name}: the gradient", theta, grad, "theta", "estimate")
    _check_same(f"{name}: the state", state, after, "init", "estimate")
    for metric in METRICS:
        if metric not in metrics:
            raise UserError(f"{name}: its metrics lack {metric!r}, they have {', '.join(metrics) or 'nothing'}")
    for metric, value in metrics.items():
        if jnp.shape(value):
            raise UserError(f"{name}: the metric {metric!r} must be a scalar, it has shape {jnp.shape(value)}")


def _trace(what: str, method: Callable[..., Any], *arguments: Any) -> Any:
    """The shapes of what a method returns; raises UserError if it cannot be traced or is not pure."""
    traces = []
    for _ in range(2):
        # A new function each time: a cached trace would hide what differs.
        def fresh(*arguments):
            return method(*arguments)

        try:
            traces.append(jax.make_jaxpr(fresh, return_shape=True)(*arguments))
        except UserError:
            raise
        except Exception as error:
            message = (str(error).strip() or "no message").splitlines()[0]
            raise UserError(f"{what} fails{_place(error)}: {type(error).__name__}: {message}") from error
    (first, shapes), (second, _) = traces
    same_consts = len(first.consts) == len(second.consts) and all(map(_equal, first.consts, second.consts))
    if str(first) != str(second) or not same_consts:
        raise UserError(
            f"{what} is not pure: called twice with the same arguments it does two things; take randomness from its "
            "key and keep nothing between calls"
        )
    return shapes


def _equal(first: Any, second: Any) -> bool:
    if jnp.issubdtype(first.dtype, jax.dtypes.prng_key):
        first, second = jax.random.key_data(first), jax.random.key_data(second)
    return np.array_equal(np.asarray(first), np.asarray(second), equal_nan=jnp.issubdtype(first.dtype, jnp.inexact))


def _check_scalar(what: str, value: Any) -> None:
    if not hasattr(value, "shape") or value.shape or not jnp.issubdtype(value.dtype, jnp.inexact):
        shape = f"{value.dtype}{list(value.shape)}" if hasattr(value, "shape") else type(value).__name__
        raise UserError(f"{what} must be a scalar float, it is {shape}")


def _check_same(what: str, first: PyTree, second: PyTree, one: str, other: str) -> None:
    """Raises UserError naming the first leaf in which two trees of shapes differ."""
    leaves = [{_path(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)} for tree in (first, second)]
    for path in [*leaves[0], *leaves[1]]:
        ours, theirs = (f"{tree[path].dtype}{list(tree[path].shape)}" if path in tree else "nothing" for tree in leaves)
        if ours != theirs:
            raise UserError(f"{what} changes at {path}: {ours} from {one}, {theirs} from {other}")
    if jax.tree.structure(first) != jax.tree.structure(second):
        raise UserError(
            f"{what} changes its containers: {jax.tree.structure(first)} from {one}, "
            f"{jax.tree.structure(second)} from {other}"
        )


def _path(path: tuple) -> str:
    return repr(jax.tree_util.keystr(path, simple=True, separator=".")) if path else "its root"


def _place(error: Exception) -> str:
    """Where in the user's own code, and not in a library or in ours, an error was raised."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        is_ours = any(Path(frame.filename).is_relative_to(package) for package in OURS)
        if "site-packages" not in frame.filename and not is_ours:
            return f" at {frame.filename}, line {frame.lineno}"
    return ""


def _label(name: Any) -> str:
    return name if isinstance(name, str) else getattr(name, "__name__", type(name).__name__)
