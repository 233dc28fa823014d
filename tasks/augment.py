"""Augmentations: a task made into another with the same minimum."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaopt.core import Key, Params, PyTree, TaskParams
from tasks.supervised import Supervised


class Scaled(NamedTuple):
    task_params: TaskParams  # of the task underneath
    scales: PyTree  # like the parameters, () each


@dataclasses.dataclass(frozen=True)
class Reparametrized(Supervised):
    """The same function of rescaled tensors: loss(p * s), starting from p0 / s.

    Each tensor draws one s, log-uniform in [1 / max_factor, max_factor]. What an optimizer
    has to do is unchanged but for the natural size of its steps.

    Source: Metz et al., arXiv:2211.09760 (VeLO), task augmentation.
    """

    task: Supervised
    max_factor: float = 10.0

    @property
    def name(self) -> str:
        return f"{self.task.name}/reparam"

    def traits(self) -> dict:
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
        return self.task.loss(task_params.task_params, self._natural(task_params, params), key, split)

    def outputs(self, task_params: Scaled, params: Params, key: Key, split: str = "train") -> jax.Array | None:
        return self.task.outputs(task_params.task_params, self._natural(task_params, params), key, split)

    def unit_activity(self, task_params: Scaled, params: Params, key: Key) -> PyTree | None:
        return self.task.unit_activity(task_params.task_params, self._natural(task_params, params), key)

    def measure(self, task_params: Scaled, params: Params, split: str) -> dict[str, jax.Array]:
        return self.task.measure(task_params.task_params, self._natural(task_params, params), split)

    def _natural(self, task_params: Scaled, params: Params) -> Params:
        return jax.tree.map(jnp.multiply, params, task_params.scales)
