"""The contracts every module of metaopt speaks.

Data flows one way: a task becomes an inner problem, an estimator turns an inner problem into a
meta-gradient, the outer loop moves theta, and theta bound to a learned algorithm is an object
that its users already know. Nothing here imports any other module of the project.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax

PyTree: TypeAlias = Any
Theta: TypeAlias = PyTree  # meta-parameters: what meta-training changes
Params: TypeAlias = PyTree  # inner parameters: what an optimizer changes
TaskParams: TypeAlias = PyTree  # which problem of a task: a pytree of arrays, may be empty
Algorithm: TypeAlias = Any  # what ``Learned.bind`` returns: an Optax optimizer, a drift, an evosax algorithm ...
Key: TypeAlias = jax.Array  # a typed key of jax.random
Drift: TypeAlias = Callable[..., jax.Array]  # drift(log_ratio, advantage, progress=None), element by element
Agent: TypeAlias = Callable[[Params, PyTree], dict[str, jax.Array]]  # (params, observations) -> outputs by head


class Learned(NamedTuple):
    """What is meta-trained and what is deployed: one object for both.

    Attributes:
      init: ``key -> theta``, fresh meta-parameters.
      bind: ``(theta, num_steps=None) -> algorithm``, an object its users already know. ``theta`` may
        be traced, so binding happens inside the function that is vmapped over perturbations or
        differentiated. ``num_steps``, the planned length of training in inner steps, may be a
        traced integer. The state of what is bound holds arrays only.
      kind: what the algorithm does, a name of ``metaopt.families.KINDS``; tasks say in ``solved_by``
        which kinds they are for.
    """

    init: Callable[[Key], Theta]
    bind: Callable[..., Algorithm]
    kind: str = "optimizer"


class Rollout(NamedTuple):
    """What T steps of B agents in their environments were, for an update rule.

    An environment that is done begins anew at once, and its next observation is of the next episode.
    """

    observations: PyTree  # (T + 1, B, ...)
    actions: jax.Array  # (T, B) int32
    rewards: jax.Array  # (T, B)
    terminated: jax.Array  # (T, B) bool: the step ended an episode for good, nothing more was to be had
    done: jax.Array  # (T, B) bool: the step ended an episode, for good or by a limit of time
    logits: jax.Array  # (T, B, num_actions) of the policy that acted


class UpdateRule(NamedTuple):
    """A loss whose gradient updates an agent: what ``bind`` returns for the kind "update_rule".

    An agent is ``apply: (params, observations) -> outputs``, a dict with an array (..., *shape) for each
    head that the rule asks for; the head "logits", (..., num_actions), is its policy.

    Attributes:
      heads: ``num_actions -> {name: shape}``, what the rule needs of an agent.
      init: ``params -> state``, what the rule keeps from one update to the next: arrays only.
      loss: ``(apply, params, rollout, state) -> (loss, state)``, differentiable in params.
    """

    heads: Callable[[int], dict[str, tuple[int, ...]]]
    init: Callable[[Params], PyTree]
    loss: Callable[[Agent, Params, Rollout, PyTree], tuple[jax.Array, PyTree]]


class Task(Protocol):
    """A distribution of problems, each of which runs itself; every method is pure and vmappable.

    Meta-training and evaluation call the same ``step``: what was trained is what is measured. A
    task passes its algorithm all that it has for it, e.g. an optimizer ``value``, ``value_fn``, ``key``
    and ``activations``. For a differentiable loss see ``tasks.supervised``: there only the loss is said.

    A task whose step calls an algorithm several times has an attribute ``calls_per_step``, their number by
    kind, e.g. ``{"optimizer": 16}``: the length of training that an algorithm is told is in its own steps.
    """

    @property
    def name(self) -> str: ...

    @property
    def solved_by(self) -> tuple[str, ...]:
        """Kinds of algorithm, names of ``metaopt.families.KINDS``."""
        ...

    def traits(self) -> dict[str, Any]:
        """What decides whether a task is held out, as plain JSON values.

        "family": str; "datasets": names; "architecture": name -> [smallest, largest].
        """
        ...

    def sample(self, key: Key) -> TaskParams:
        """Which problem: a pytree of arrays, possibly empty."""
        ...

    def init(self, task_params: TaskParams, key: Key) -> PyTree:
        """What is worked on, fresh: parameters, an agent, a population."""
        ...

    def start(self, algorithm: Algorithm, task_params: TaskParams, x: PyTree) -> PyTree:
        """The state before the first step: ``x`` and what the algorithm keeps beside it."""
        ...

    def step(self, algorithm: Algorithm, task_params: TaskParams, state: PyTree, key: Key) -> tuple[PyTree, jax.Array]:
        """One step, e.g. a batch, a PPO update, a generation: the new state and the () loss of the step."""
        ...

    def solution(self, state: PyTree) -> PyTree:
        """What is worked on, as it stands: like what ``init`` returns."""
        ...

    def evaluate(self, task_params: TaskParams, x: PyTree, split: str, key: Key | None = None) -> dict[str, jax.Array]:
        """Measures of a solution, () each; always holds "loss", the smaller the better.

        Args:
          task_params: which problem.
          x: a solution.
          split: "train", "valid" or "test".
          key: of a quick measurement, e.g. a fresh batch, as meta-training records it after every
            step; None asks for the thorough one, the same at every call.
        """
        ...


def num_calls(task: Task, kind: str, num_steps: Any) -> Any:
    """How often a task calls an algorithm of this kind in so many of its own steps."""
    return num_steps * getattr(task, "calls_per_step", {}).get(kind, 1)


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
    inner: PyTree  # the state of the task: what theta acts on; may be empty


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
