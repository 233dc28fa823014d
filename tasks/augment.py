"""Augmentations: a task made into another with the same minimum."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaopt.core import PyTree, Task


class Scaled(NamedTuple):
    task_params: PyTree  # of the task underneath
    scales: PyTree  # like the parameters, () each


@dataclasses.dataclass(frozen=True)
class Reparametrised:
    """The same function of rescaled tensors: loss(p * s), starting from p0 / s.

    Each tensor draws one s, log-uniform in [1 / spread, spread]. What an optimizer
    has to do is unchanged but for the natural size of its steps.

    Source: Metz et al., arXiv:2211.09760 (VeLO), task augmentation.
    """

    task: Task
    spread: float = 10.0

    @property
    def name(self) -> str:
        return f"{self.task.name}/reparam"

    def traits(self) -> dict:
        return self.task.traits()

    def sample(self, key) -> Scaled:
        k_task, k_scales, k_shape = jax.random.split(key, 3)
        task_params = self.task.sample(k_task)
        leaves, tree = jax.tree.flatten(jax.eval_shape(self.task.init, task_params, k_shape))
        log_scales = jax.random.uniform(k_scales, (len(leaves),), minval=-1.0, maxval=1.0) * jnp.log(self.spread)
        return Scaled(task_params, tree.unflatten(list(jnp.exp(log_scales))))

    def init(self, task_params: Scaled, key):
        return jax.tree.map(jnp.divide, self.task.init(task_params.task_params, key), task_params.scales)

    def multipliers(self, task_params: Scaled):
        return getattr(self.task, "multipliers", lambda task_params: None)(task_params.task_params)

    def loss(self, task_params: Scaled, params, key, split: str = "train"):
        return self.task.loss(task_params.task_params, self._natural(task_params, params), key, split)

    def evaluate(self, task_params: Scaled, params, split: str):
        return self.task.evaluate(task_params.task_params, self._natural(task_params, params), split)

    def _natural(self, task_params: Scaled, params):
        return jax.tree.map(jnp.multiply, params, task_params.scales)
