"""Named sets of tasks: for meta-training and, disjoint from it, for evaluation."""

import functools
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from metaopt.core import Task
from metaopt.errors import UserError, unknown
from metaopt.references import is_reference, resolve
from tasks.augment import Reparametrized
from tasks.gridworld import GridWorld
from tasks.image_conv import ImageConv
from tasks.image_mlp import ImageMLP
from tasks.lasso import Lasso
from tasks.ppo import PPO
from tasks.quadratic import Quadratic

ACTIVATIONS = ("relu", "tanh", "silu")
METHODS = ("name", "solved_by", "traits", "sample", "init", "start", "step", "solution", "evaluate")  # of core.Task


def images_small() -> tuple[Task, ...]:
    """For meta-training: sampled MLPs on digits and Fashion-MNIST, three resolutions."""
    sampled = functools.partial(
        ImageMLP, activations=ACTIVATIONS, max_init_factor=2.0, max_input_factor=2.0, min_train=5000
    )
    return (
        Reparametrized(
            sampled(("digits", "fashion"), side=8, width=32, depth=3, min_width=8, min_depth=1, name="images-8"), 10.0
        ),
        Reparametrized(
            sampled(("fashion",), side=14, width=32, depth=2, min_width=16, min_depth=1, name="images-14"), 10.0
        ),
        Reparametrized(sampled(("fashion",), side=28, width=16, depth=1, name="images-28"), 10.0),
    )


def digits_only() -> tuple[Task, ...]:
    """One small network on the bundled digits: for demonstrations and smoke tests."""
    return (ImageMLP(name="digits-mlp"),)


def digits_mup() -> tuple[Task, ...]:
    """One network in muP at two widths, for muLO."""
    return tuple(ImageMLP(width=width, depth=3, mup=True, name=f"digits-mup-{width}") for width in (16, 64))


def quadratics() -> tuple[Task, ...]:
    """Noisy quadratics in ten dimensions: seconds to meta-train on."""
    return (Quadratic(dim=10, condition=100.0, noise=0.1),)


def lasso() -> tuple[Task, ...]:
    """Sparse regressions of 20 equations in 40 unknowns: for proximal methods."""
    return (Lasso(),)


def agents_small() -> tuple[Task, ...]:
    """Agents on three small environments, stopped halfway to what PPO can reach: for drifts."""
    agent = functools.partial(PPO, width=32, learning_rate=1e-3)
    return (
        agent("CartPole-v1", num_environments=8, rollout_steps=64),
        agent("Catch-bsuite", num_environments=16, rollout_steps=32),
        agent("DeepSea-bsuite", num_environments=8, rollout_steps=16),
    )


def gridworlds() -> tuple[Task, ...]:
    """Tabular agents in random gridworlds of 4 to 10 rows: for LPG, the levels "all" of GROOVE."""
    return (GridWorld(),)


def mnist_mlp() -> tuple[Task, ...]:
    """One network on MNIST with small batches, so that the learning rate has to fall: for schedules."""
    return (ImageMLP(("mnist5k",), side=14, width=64, depth=2, batch_size=16, name="mnist-14-mlp-64x2"),)


def mnist_deep() -> tuple[Task, ...]:
    """One network of twelve tensors on MNIST: for hyper-parameters of every tensor."""
    return (ImageMLP(("mnist5k",), side=14, width=32, depth=5, batch_size=16, name="mnist-14-mlp-32x5"),)


def heldout_small() -> tuple[Task, ...]:
    """For evaluation: an unseen data set, unseen shapes, unseen layers, no images at all."""
    return (
        ImageMLP(("mnist5k",), side=8, width=32, depth=1, name="mnist-8-mlp-32"),
        ImageMLP(("mnist5k",), side=14, width=32, depth=4, activations=("tanh",), name="mnist-14-tanh-32x4"),
        ImageMLP(("mnist5k",), side=28, width=32, depth=1, name="mnist-28-mlp-32"),
        ImageMLP(("mnist5k",), side=28, width=0, depth=0, name="mnist-28-softmax"),
        ImageMLP(("fashion",), side=28, width=64, depth=2, batch_size=128, name="fashion-28-mlp-64x2"),
        ImageConv("digits", name="digits-8-conv"),
        Quadratic(dim=20, condition=1000.0, noise=0.03, name="quadratic-20"),
    )


SUITES = {
    "agents-small": agents_small,
    "digits": digits_only,
    "digits-mup": digits_mup,
    "gridworlds": gridworlds,
    "heldout-small": heldout_small,
    "images-small": images_small,
    "lasso": lasso,
    "mnist-deep": mnist_deep,
    "mnist-mlp": mnist_mlp,
    "quadratics": quadratics,
}


def build(tasks: Any) -> tuple[Task, ...]:
    """The tasks that are meant.

    Args:
      tasks: the name of a suite; a reference to, or itself, a task, a function without arguments that
        returns tasks, or a sequence of any of these.

    Raises:
      UserError: for an unknown name, or something that is no task.
    """
    if isinstance(tasks, str):
        if tasks not in SUITES and not is_reference(tasks):
            raise unknown("suite", tasks, SUITES)
        return build(SUITES[tasks] if tasks in SUITES else resolve(tasks))
    if all(hasattr(tasks, method) for method in METHODS) and not isinstance(tasks, type):
        return (tasks,)
    if callable(tasks):
        return build(_call(tasks))
    if isinstance(tasks, Iterable):
        return tuple(task for entry in tasks for task in build(entry))
    if isinstance(tasks, ModuleType):
        names = [name for name, value in vars(tasks).items() if callable(value) and not name.startswith("_")]
        raise UserError(f"{tasks.__file__} is a file of tasks: say which, {tasks.__file__}:NAME, of {', '.join(names)}")
    missing = [method for method in METHODS if not hasattr(tasks, method)]
    raise UserError(f"{type(tasks).__name__} is no task: it lacks {', '.join(missing)} (see metaopt.core.Task)")


def _call(make: Callable[[], Any]) -> Any:
    """What a function, or a class, makes without arguments."""
    try:
        return make()
    except UserError:
        raise
    except Exception as error:
        name = getattr(make, "__name__", type(make).__name__)
        raise UserError(f"{name}() makes no tasks: {type(error).__name__}: {error}") from error
