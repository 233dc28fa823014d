"""Random convex quadratics: the cheapest task, with a known optimum."""

import dataclasses
from typing import Any, NamedTuple

import jax

from metaopt.core import Key, Params
from tasks.supervised import Supervised


class Quadric(NamedTuple):
    """One quadratic.

    Attributes:
      hessian: (dim, dim), eigenvalues log-uniform in [1 / condition, 1].
      optimum: (dim,).
    """

    hessian: jax.Array
    optimum: jax.Array


@dataclasses.dataclass(frozen=True)
class Quadratic(Supervised):
    """Minimize ``0.5 (x - x*)' H (x - x*) / dim`` with random eigenvectors of H.

    Attributes:
      dim: number of parameters.
      condition: ratio of the largest possible curvature to the smallest.
      noise: standard deviation of the gradient noise in each coordinate and step. It is added to
        the training loss as a random linear term with mean zero; validation and test losses have
        no noise.
      name: name of the task.
    """

    dim: int = 10
    condition: float = 100.0
    noise: float = 0.0
    name: str = "quadratic"

    def __post_init__(self) -> None:
        if self.dim < 1 or self.condition < 1 or self.noise < 0:
            raise ValueError(f"need dim >= 1, condition >= 1 and noise >= 0, got {self}")

    def traits(self) -> dict[str, Any]:
        return {"family": "quadratic", "datasets": [], "architecture": {"dim": [self.dim] * 2}}

    def sample(self, key: Key) -> Quadric:
        k_values, k_directions, k_optimum = jax.random.split(key, 3)
        values = self.condition ** -jax.random.uniform(k_values, (self.dim,))
        directions = jax.random.orthogonal(k_directions, self.dim)
        return Quadric((directions * values) @ directions.T, jax.random.normal(k_optimum, (self.dim,)))

    def init(self, task_params: Quadric, key: Key) -> Params:
        del task_params
        return {"x": jax.random.normal(key, (self.dim,))}

    def loss(self, task_params: Quadric, params: Params, key: Key, split: str = "train") -> jax.Array:
        gap = params["x"] - task_params.optimum
        loss = 0.5 * gap @ task_params.hessian @ gap
        if split == "train" and self.noise:
            loss += self.noise * jax.random.normal(key, gap.shape) @ gap
        return loss / self.dim

    def measure(self, task_params: Quadric, params: Params, split: str) -> dict[str, jax.Array]:
        del split  # the same function for all splits, without noise
        return {"loss": self.loss(task_params, params, jax.random.key(0), "test")}
