"""What is wrong with a user's own code, said by name before anything runs.

Every method is traced once with shapes alone, and a second time to see that it is pure. Ours are
held to the same contracts by tests, and are not traced here.
"""

import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from metaopt.core import Algorithm, Learned, PyTree, Task
from metaopt.errors import UserError
from metaopt.families import KINDS

PACKAGES = ("metaopt", "tasks", "meta_train")  # ours
FOLDERS = [Path(__file__).resolve().parents[1] / package for package in PACKAGES]
TRAITS = {"family": str, "datasets": list, "architecture": dict}
SPLITS = ("train", "valid", "test")


def is_ours(task: Task) -> bool:
    """Whether a task's class is in one of our packages."""
    return type(task).__module__.partition(".")[0] in PACKAGES


def check_theta(learned: Learned, name: str) -> PyTree:
    """The shapes of theta. Raises UserError if ``init`` does not keep its contract, see ``core.Learned``."""
    theta = trace(f"family {name}: init", learned.init, jax.random.key(0))
    if not jax.tree.leaves(theta):
        raise UserError(f"family {name}: init returns no meta-parameters, there is nothing to train")
    return theta


def check_bind(learned: Learned, name: str, theta: PyTree) -> None:
    """Raises UserError if ``bind`` does not take theta and ``num_steps``, or returns nothing."""
    bound = []

    def bind(theta, num_steps):
        bound.append(learned.bind(theta, num_steps=num_steps))

    trace(f"family {name}: bind(theta, num_steps=...)", bind, theta, jnp.int32(10))
    if bound[0] is None:
        raise UserError(f"family {name}: bind returns None, it should return the algorithm")


def check_task(task: Task, bind: Callable[..., Algorithm], *arguments: Any) -> None:
    """Raises UserError naming what of a task does not keep its contract, see ``core.Task``.

    Args:
      task: the task.
      bind: ``(*arguments) -> algorithm`` of a kind that solves the task; called inside traced functions.
      arguments: arrays, or their shapes.
    """
    name = _check_name(task)
    _check_traits(name, task)
    key = jax.random.key(0)
    task_params = trace(f"{name}: sample", task.sample, key)
    x = trace(f"{name}: init", task.init, task_params, key)

    def start(arguments, task_params, x):
        return task.start(bind(*arguments), task_params, x)

    def step(arguments, task_params, state, key):
        return task.step(bind(*arguments), task_params, state, key)

    state = trace(f"{name}: start", start, arguments, task_params, x)
    stepped = trace(f"{name}: step", step, arguments, task_params, state, key)
    if not isinstance(stepped, tuple) or len(stepped) != 2:
        raise UserError(f"{name}: step returns (state, loss), this one {type(stepped).__name__}")
    after, loss = stepped
    check_scalar(f"{name}: the loss that step returns", loss)
    check_same(f"{name}: the state", state, after, "start", "step")
    solution = trace(f"{name}: solution", task.solution, state)
    check_same(f"{name}: what is worked on", x, solution, "init", "solution")
    for split in SPLITS:
        for given in (key, None):
            _check_measures(name, task, task_params, x, split, given)
    kept = getattr(task, "__dict__", {})  # of a class with slots nothing is seen
    leaked = [field for field, value in kept.items() if any(isinstance(x, Tracer) for x in jax.tree.leaves(value))]
    if leaked:
        raise UserError(f"{name} keeps {', '.join(leaked)} of a traced call: return it in the state, methods are pure")


def _check_name(task: Task) -> str:
    """How messages call a task, whose name and kinds are in order."""
    if not isinstance(task.name, str) or not task.name:
        raise UserError(f"task {type(task).__name__}: name must be a text, got {task.name!r}")
    name, kinds = f"task {task.name}", task.solved_by
    if not isinstance(kinds, tuple | list) or not kinds or not all(kind in KINDS for kind in kinds):
        known = ", ".join(sorted(KINDS))
        raise UserError(f"{name}: solved_by must be a tuple of kinds, of {known}; got {kinds!r}")
    return name


def _check_measures(name: str, task: Task, task_params: PyTree, x: PyTree, split: str, key: Any) -> None:
    def evaluate(task_params, x):
        return task.evaluate(task_params, x, split, key)

    asked = f"{name}: evaluate(..., {split!r}, {'None' if key is None else 'key'})"
    measures = trace(asked, evaluate, task_params, x)
    if not isinstance(measures, dict) or "loss" not in measures:
        had = ", ".join(measures) if isinstance(measures, dict) else type(measures).__name__
        raise UserError(f'{asked} must return a dict with "loss", the smaller the better; has {had or "nothing"}')
    for measure, value in measures.items():
        check_scalar(f"{asked}: {measure!r}", value)


def _check_traits(name: str, task: Task) -> None:
    try:
        traits = json.loads(json.dumps(task.traits(), allow_nan=False))
    except Exception as error:
        raise UserError(
            f"{name}: traits fails{_place(error)}, it must return plain JSON values: {type(error).__name__}: {error}"
        ) from error
    for trait, kind in TRAITS.items():
        if not isinstance(traits.get(trait) if isinstance(traits, dict) else None, kind):
            raise UserError(
                f"{name}: traits must have {trait!r}, a {kind.__name__}: it decides whether a task is held out"
            )
    if not all(isinstance(dataset, str) for dataset in traits["datasets"]):
        raise UserError(f"{name}: traits must have names of data sets in 'datasets', got {traits['datasets']}")
    for size, bounds in traits["architecture"].items():
        numbers = isinstance(bounds, list) and bounds and all(isinstance(bound, int | float) for bound in bounds)
        if not numbers:
            raise UserError(
                f"{name}: traits must have [smallest, largest] for {size!r} in 'architecture', got {bounds}"
            )


def trace(what: str, method: Callable[..., Any], *arguments: Any) -> Any:
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


def check_scalar(what: str, value: Any) -> None:
    if not hasattr(value, "shape") or value.shape or not jnp.issubdtype(value.dtype, jnp.inexact):
        shape = f"{value.dtype}{list(value.shape)}" if hasattr(value, "shape") else type(value).__name__
        raise UserError(f"{what} must be a scalar float, it is {shape}")


def check_same(what: str, first: PyTree, second: PyTree, one: str, other: str) -> None:
    """Raises UserError naming the first leaf in which two trees of shapes differ."""
    leaves = [{leaf_path(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)} for tree in (first, second)]
    for path in [*leaves[0], *leaves[1]]:
        ours, theirs = (f"{tree[path].dtype}{list(tree[path].shape)}" if path in tree else "nothing" for tree in leaves)
        if ours != theirs:
            raise UserError(f"{what} changes at {path}: {ours} from {one}, {theirs} from {other}")
    if jax.tree.structure(first) != jax.tree.structure(second):
        raise UserError(
            f"{what} changes its containers: {jax.tree.structure(first)} from {one}, "
            f"{jax.tree.structure(second)} from {other}"
        )


def leaf_path(path: tuple) -> str:
    return repr(jax.tree_util.keystr(path, simple=True, separator=".")) if path else "its root"


def _equal(first: Any, second: Any) -> bool:
    if jnp.issubdtype(first.dtype, jax.dtypes.prng_key):
        first, second = jax.random.key_data(first), jax.random.key_data(second)
    return np.array_equal(np.asarray(first), np.asarray(second), equal_nan=jnp.issubdtype(first.dtype, jnp.inexact))


def _place(error: Exception) -> str:
    """Where in the user's own code, and not in a library or in ours, an error was raised."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        is_ours = any(Path(frame.filename).is_relative_to(package) for package in FOLDERS)
        if "site-packages" not in frame.filename and not is_ours:
            return f" at {frame.filename}, line {frame.lineno}"
    return ""
