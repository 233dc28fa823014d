"""Augmentations: changes of a task that keep its minimum."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metaopt.core import Key, Params, PyTree, TaskParams
from tasks.supervised import Supervised


class Scaled(NamedTuple):
    """A problem of the original task, and a scale for each tensor."""

    task_params: TaskParams  # problem of the original task
    scales: PyTree  # tree like the parameters, a () scale for each tensor


@dataclasses.dataclass(frozen=True)
class Reparametrized(Supervised):
    """The same function of rescaled tensors: loss(p * s), starting from p0 / s.

    Each tensor has its own s, log-uniform in [1 / max_factor, max_factor]. For an optimizer only
    the appropriate size of the steps changes.

    Attributes:
      task: original task.
      max_factor: largest scale of a tensor.

    Source: Metz et al., arXiv:2211.09760 (VeLO), task augmentation.
    """

    task: Supervised
    max_factor: float = 10.0

    @property
    def name(self) -> str:
        return f"{self.task.name}/reparam"

    def traits(self) -> dict[str, Any]:
        return self.task.traits()

    def sample(self, key: Key) -> Scaled:
        k_task, k_scales, k_shape = jax.random.split(key, 3)
        task_params = self.task.sample(k_task)
        leaves, tree = jax.tree.flatten(jax.eval_shape(self.task.init, task_params, k_shape))
        log_scales = jax.random.uniform(k_scales, (len(leaves),), minval=-1.0, maxval=1.0) * jnp.log(self.max_factor)
        return Scaled(task_params, tree.unflatten(list(jnp.exp(log_scales))))

    def init(self, task_params: Scaled, key: Key) -> Params:
        return jax.tree.map(jnp.divide, self.task.init(task_params.task_params, key), task_params.scales)

    def multipliers(self, task_params: Scaled) -> Params | None:
        return self.task.multipliers(task_params.task_params)

    def loss(self, task_params: Scaled, params: Params, key: Key, split: str = "train") -> jax.Array:
        return self.task.loss(task_params.task_params, self._original(task_params, params), key, split)

    def outputs(self, task_params: Scaled, params: Params, key: Key, split: str = "train") -> jax.Array | None:
        return self.task.outputs(task_params.task_params, self._original(task_params, params), key, split)

    def unit_activity(self, task_params: Scaled, params: Params, key: Key) -> PyTree | None:
        return self.task.unit_activity(task_params.task_params, self._original(task_params, params), key)

    def measure(self, task_params: Scaled, params: Params, split: str) -> dict[str, jax.Array]:
        return self.task.measure(task_params.task_params, self._original(task_params, params), split)

    def _original(self, task_params: Scaled, params: Params) -> Params:
        """The parameters of the original task."""
        return jax.tree.map(jnp.multiply, params, task_params.scales)
