"""The contracts every part of metaopt speaks.

Data flows one way: a task becomes an inner problem, an estimator turns an inner
problem into a meta-gradient, the outer loop moves theta, and theta bound to a
learned optimizer is an ordinary Optax transformation. Nothing here imports any
other module of the project.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import optax

PyTree: TypeAlias = Any
Theta: TypeAlias = PyTree  # meta-parameters: what meta-training changes
Params: TypeAlias = PyTree  # inner parameters: what a bound optimizer changes
Key: TypeAlias = jax.Array  # a typed key of jax.random


class LearnedOptimizer(NamedTuple):
    """What is meta-trained and what is deployed: one object for both.

    Attributes:
      init: ``key -> theta``, fresh meta-parameters.
      bind: ``(theta, num_steps=None) -> optax.GradientTransformationExtraArgs``.
        ``theta`` may be traced, so binding happens inside the function that is
        vmapped over perturbations or differentiated. ``num_steps``, the planned
        length of training in inner steps, may be a traced integer.
    """

    init: Callable[[Key], Theta]
    bind: Callable[..., optax.GradientTransformationExtraArgs]


class Task(Protocol):
    """A distribution of problems; every method is pure and vmappable.

    A task of classification may also have ``outputs``, called like ``loss``: the
    (num, classes) logits of the same batch. One in muP may have ``multipliers``,
    ``task_params -> tree like the parameters``, what every update is multiplied by, or None.
    """

    @property
    def name(self) -> str: ...

    def traits(self) -> dict:
        """What decides whether a task is held out, as plain JSON values.

        "family": str; "datasets": names; "architecture": name -> [smallest, largest].
        """
        ...

    def sample(self, key: Key) -> PyTree:
        """Which problem: a pytree of arrays, possibly empty."""
        ...

    def init(self, task_params: PyTree, key: Key) -> Params:
        """Fresh inner parameters."""
        ...

    def loss(self, task_params: PyTree, params: Params, key: Key, split: str = "train") -> jax.Array:
        """() float32 on a batch of ``split`` drawn on the device from ``key``."""
        ...

    def evaluate(self, task_params: PyTree, params: Params, split: str) -> dict[str, jax.Array]:
        """Measures on a fixed set of examples of ``split``; always holds "loss" ()."""
        ...


def scaled_updates(task: Task, task_params: PyTree, updates: PyTree) -> PyTree:
    """Updates times the task's ``multipliers``, where it has them."""
    multipliers = getattr(task, "multipliers", lambda task_params: None)(task_params)
    return updates if multipliers is None else jax.tree.map(jnp.multiply, updates, multipliers)


class Episode(NamedTuple):
    """One run of an inner problem, between two resets.

    Everything but ``inner`` is shared by the two members of an antithetic pair:
    estimators vmap over the members of ``inner`` only, so a batch is drawn once
    for both and a field that depended on theta would fail at trace time.
    """

    # PyTree, not Array, because the same container holds axes for vmap.
    key: PyTree  # () the key of inner step t is fold_in(key, t)
    step: PyTree  # () int32, inner steps taken
    horizon: PyTree  # () int32, inner steps of the whole episode
    problem: PyTree  # which problem is solved, independent of theta
    inner: PyTree  # parameters, optimizer state: what theta acts on


class Learner(NamedTuple):
    """What an inner problem learns, for estimators that compare parameters.

    Attributes:
      params: ``episode -> params``.
      loss: ``(episode, params) -> ()``, the inner objective on a batch that belongs
        to the step the episode is at.
      outputs: ``(episode, params) -> (num, classes)`` logits on that batch; None where
        parameters have none.
    """

    params: Callable[[Episode], Params]
    loss: Callable[[Episode, Params], jax.Array]
    outputs: Callable[[Episode, Params], jax.Array] | None = None


class InnerProblem(NamedTuple):
    """Whatever can be meta-trained on.

    Attributes:
      reset: ``(theta, key, outer_step) -> Episode``, a new episode at step 0;
        ``outer_step`` () int32 is what curricula go by.
      step: ``(theta, episode) -> (episode, loss)``, one inner step; ``loss`` () is
        what the meta-objective is made of.
      worst: a loss above it, or not finite, counts as this much, so that a member
        that diverged is a bad sample and not the end of the run.
      longest: most inner steps of an episode; 0 where there is no bound.
      final: ``episode -> ()``, the loss of the state as it stands, on fresh batches;
        None where there is nothing but the losses of the steps.
      learner: None where nothing with parameters is learned.
    """

    reset: Callable[[Theta, Key, jax.Array | int], Episode]
    step: Callable[[Theta, Episode], tuple[Episode, jax.Array]]
    worst: float = float("inf")
    longest: int = 0
    final: Callable[[Episode], jax.Array] | None = None
    learner: Learner | None = None


class Estimator(NamedTuple):
    """A meta-gradient estimator.

    Attributes:
      init: ``(theta, key) -> state``.
      estimate: ``(theta, state, outer_step) -> (grad, state, metrics)``; ``grad`` has the
        structure of theta and points uphill on the meta-loss. ``metrics`` are ()
        arrays and hold "meta_loss", "inner_steps", how many counted, and "num_valid",
        the number of samples that contributed; the outer loop leaves theta alone where
        that is zero.
    """

    init: Callable[[Theta, Key], PyTree]
    estimate: Callable[[Theta, PyTree, jax.Array | int], tuple[Theta, PyTree, dict[str, jax.Array]]]
