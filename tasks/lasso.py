"""Sparse regression, the LASSO: convex but not smooth, with a random matrix."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metaopt.core import Key, Params
from tasks.supervised import Supervised


class Regression(NamedTuple):
    """One sparse regression.

    Attributes:
      matrix: M (rows, columns), with a spectral norm between 0.999 and 1.
      target: t (rows,).
    """

    matrix: jax.Array
    target: jax.Array


@dataclasses.dataclass(frozen=True)
class Lasso(Supervised):
    """Minimize ``F(x) = 0.5 |M x - t|^2 + l1 |x|_1`` where t = M x_true and x_true is sparse.

    The published problem is ``0.5 |W z - W z_true|^2 + l1 |z|_1`` with a Gaussian W with unit
    columns, and its step size s / L depends on L = |W|^2. Here x = L z, M = W / |W| and F is L
    times as large, so that step size s and l1 are the same for all matrices, and a proximal
    gradient method takes the same steps.

    The loss of the split "train" is the smooth term of F only, for optimizers that handle the
    other term in a proximal step; the loss of the other splits is F.

    Attributes:
      rows, columns: shape of the matrix.
      nonzeros: number of nonzero entries of z_true, which are standard normal.
      l1: weight of the l1 norm.
      noise: standard deviation of the gradient noise in each coordinate and step; F has no noise.
      name: name of the task.

    Source: Liu et al., arXiv:2305.18577, section 5; xhchrn/MS4L2O, optimizees/lasso.py.
    """

    rows: int = 20
    columns: int = 40
    nonzeros: int = 5
    l1: float = 0.1
    noise: float = 0.0
    name: str = "lasso"

    def __post_init__(self) -> None:
        if self.rows < 1 or not 1 <= self.nonzeros <= self.columns:
            raise ValueError(f"need rows >= 1 and 1 <= nonzeros <= columns, got {self}")
        if self.l1 < 0 or self.noise < 0:
            raise ValueError(f"need l1 >= 0 and noise >= 0, got {self}")

    def traits(self) -> dict[str, Any]:
        architecture = {"rows": [self.rows] * 2, "columns": [self.columns] * 2}
        return {"family": "lasso", "datasets": [], "architecture": architecture}

    def sample(self, key: Key) -> Regression:
        k_matrix, k_values, k_places = jax.random.split(key, 3)
        matrix = jax.random.normal(k_matrix, (self.rows, self.columns))
        matrix = matrix / jnp.linalg.norm(matrix, axis=0)
        norm = jnp.sqrt(largest_eigenvalue(matrix @ matrix.T))
        nonzero = jax.random.permutation(k_places, self.columns) < self.nonzeros
        truth = jnp.where(nonzero, jax.random.normal(k_values, (self.columns,)), 0.0) * norm**2
        return Regression(matrix / norm, matrix @ truth / norm)

    def init(self, task_params: Regression, key: Key) -> Params:
        del task_params
        return {"x": jax.random.normal(key, (self.columns,))}

    def loss(self, task_params: Regression, params: Params, key: Key, split: str = "train") -> jax.Array:
        residual = task_params.matrix @ params["x"] - task_params.target
        smooth = 0.5 * residual @ residual
        if split != "train":
            return smooth + self.l1 * jnp.sum(jnp.abs(params["x"]))
        return smooth + self.noise * jax.random.normal(key, params["x"].shape) @ params["x"] if self.noise else smooth

    def measure(self, task_params: Regression, params: Params, split: str) -> dict[str, jax.Array]:
        del split  # the same function F for all splits, without noise
        return {"loss": self.loss(task_params, params, jax.random.key(0), "valid")}


def largest_eigenvalue(gram: jax.Array) -> jax.Array:
    """An upper bound of the largest eigenvalue of a positive matrix, too large by a factor of at most dim^(1/4096).

        trace(G^p)^(1/p),   p = 2^12, by repeated squaring

    It consists of matrix products only, because a singular value decomposition in an inner step
    would be a call out of the compiled program.

    Args:
      gram: G (dim, dim), symmetric and positive semidefinite.

    Returns:
      ().
    """
    log_value = jnp.zeros(())
    for k in range(12):
        size = jnp.trace(gram)  # divided out, because G^p itself would overflow
        log_value += jnp.log(size) / 2**k
        gram = (gram / size) @ (gram / size)
    return jnp.exp(log_value + jnp.log(jnp.trace(gram)) / 2**12)
