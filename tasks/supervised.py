"""The one training step: a gradient, an update, whatever the loss.

A task with a differentiable loss derives from ``Supervised`` and says ``loss``; ``start``, ``step``,
``solution`` and ``evaluate`` follow. Meta-training and evaluation both run this step.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metaopt.core import Algorithm, Key, Params, PyTree, TaskParams

OPTIMIZER_KEY = 1  # the batch of a step takes the step's key as it is, the optimizer this fold of it
NUM_MEASURED = 10  # batches behind a thorough measurement, where a task has nothing better


class Training(NamedTuple):
    """The state of a supervised task."""

    params: Params
    opt_state: PyTree


class Supervised:
    """A task solved by gradients: ``loss``, ``sample``, ``init``, ``name`` and ``traits`` are its own."""

    name: str
    solved_by: tuple[str, ...] = ("optimizer",)

    def traits(self) -> dict[str, Any]:
        raise NotImplementedError(f"{type(self).__name__} is a Supervised task and says no traits")

    def init(self, task_params: TaskParams, key: Key) -> Params:
        """Fresh parameters."""
        raise NotImplementedError(f"{type(self).__name__} is a Supervised task and says no init")

    def sample(self, key: Key) -> TaskParams:
        """One problem, always the same, unless a task says otherwise."""
        del key
        return ()

    def loss(self, task_params: TaskParams, params: Params, key: Key, split: str = "train") -> jax.Array:
        """() float32 on a batch of ``split`` drawn on the device from ``key``."""
        raise NotImplementedError(f"{type(self).__name__} is a Supervised task and says no loss")

    def outputs(self, task_params: TaskParams, params: Params, key: Key, split: str = "train") -> jax.Array | None:
        """(num, classes) logits of the batch that ``loss`` sees; None where there are none."""
        del task_params, params, key, split
        return None

    def unit_activity(self, task_params: TaskParams, params: Params, key: Key) -> PyTree | None:
        """How active each unit is on the batch of ``key``, for optimizers that ask.

        Returns:
          A tree like the parameters with the (num_units,) mean of |output| in the place of each tensor
          or of each layer; None where there are no units.
        """
        del task_params, params, key
        return None

    def multipliers(self, task_params: TaskParams) -> PyTree | None:
        """What every update is multiplied by, a tree like the parameters, as muP has it; None is 1."""
        del task_params
        return None

    def measure(self, task_params: TaskParams, params: Params, split: str) -> dict[str, jax.Array]:
        """A thorough measurement, on the same examples at every call: here the mean over ten batches."""
        keys = jax.random.split(jax.random.key(0), NUM_MEASURED)
        losses = jax.vmap(lambda key: self.loss(task_params, params, key, split))(keys)
        return {"loss": jnp.mean(losses)}

    def start(self, algorithm: Algorithm, task_params: TaskParams, x: Params) -> Training:
        del task_params
        return Training(x, algorithm.init(x))

    def step(
        self, algorithm: Algorithm, task_params: TaskParams, state: Training, key: Key
    ) -> tuple[Training, jax.Array]:
        """A gradient on a batch and an update; the loss is the batch's before the update.

        The optimizer may read, besides gradients and parameters: ``value``, the loss of the batch;
        ``value_fn``, ``params -> ()`` loss on the same batch; ``key``, its own; ``activations``, the
        ``unit_activity``, or None.
        """
        params, opt_state = state

        def value_fn(params: Params) -> jax.Array:
            return self.loss(task_params, params, key)

        value, grads = jax.value_and_grad(value_fn)(params)
        updates, opt_state = optax.with_extra_args_support(algorithm).update(
            grads,
            opt_state,
            params,
            value=value,
            value_fn=value_fn,
            key=jax.random.fold_in(key, OPTIMIZER_KEY),
            activations=self.unit_activity(task_params, params, key),
        )
        multipliers = self.multipliers(task_params)
        if multipliers is not None:
            updates = jax.tree.map(jnp.multiply, updates, multipliers)
        return Training(optax.apply_updates(params, updates), opt_state), value

    def solution(self, state: Training) -> Params:
        return state.params

    def evaluate(self, task_params: TaskParams, x: Params, split: str, key: Key | None = None) -> dict[str, Any]:
        """The loss of one batch drawn from ``key``, or, without a key, the thorough ``measure``."""
        if key is None:
            return self.measure(task_params, x, split)
        return {"loss": self.loss(task_params, x, key, split)}
