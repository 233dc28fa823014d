"""Kind "optimizer": gradient descent with a learned learning rate, on linear regressions.

Everything that a recipe can name is here a user's own: a family, a task, a suite, an estimator.
Seconds on one core. The learning rate rises from 0.01 towards 1, and the meta-loss falls.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from meta_train import Episodes, Estimation, OuterLoop, Recipe
from meta_train.estimators import es
from meta_train.estimators.samples import Sampling
from metaopt.core import Estimator, InnerProblem, Key, Learned, Params, PyTree, TaskParams, Theta
from tasks import Supervised


def gain(rate: float = 0.01) -> Learned:
    """x <- x - exp(log_rate) grad f(x), a family as a function.

    Args:
      rate: learning rate before meta-training.
    """

    def init(key: Key) -> Theta:
        del key
        return {"log_rate": jnp.log(rate)}

    def bind(theta: Theta, num_steps: jax.Array | int | None = None) -> optax.GradientTransformation:
        del num_steps
        return optax.sgd(jnp.exp(theta["log_rate"]))

    return Learned(init, bind)


@dataclasses.dataclass(frozen=True)
class LinearRegression(Supervised):
    """Minimize the mean of 1/2 (a'x - a'w)^2 over a batch of inputs a ~ N(0, I), with sampled weights w ~ N(0, I)."""

    dim: int = 3
    batch_size: int = 16
    name: str = "linear-regression"

    def traits(self) -> dict:
        return {"family": "linear regression", "datasets": [], "architecture": {"dim": [self.dim, self.dim]}}

    def sample(self, key: Key) -> TaskParams:
        return jax.random.normal(key, (self.dim,))

    def init(self, task_params: TaskParams, key: Key) -> Params:
        del task_params, key
        return jnp.zeros(self.dim)

    def loss(self, task_params: TaskParams, params: Params, key: Key, split: str = "train") -> jax.Array:
        del split  # every batch is a fresh one
        inputs = jax.random.normal(key, (self.batch_size, self.dim))
        return 0.5 * jnp.mean((inputs @ (params - task_params)) ** 2)


def my_suite() -> tuple[LinearRegression, ...]:
    return (LinearRegression(),)


def half_pes(problem: InnerProblem, config: Sampling, mesh: Mesh, factor: float = 0.5) -> Estimator:
    """Persistent evolution strategies with a shorter gradient, an estimator made of another one.

    Args:
      problem: inner problem that the meta-gradient is taken through.
      config: settings that all estimators share.
      mesh: devices that the samples are sharded over.
      factor: what the gradient is multiplied by.
    """
    pes = es.pes(problem, config, mesh)

    def estimate(theta: Theta, state: PyTree, outer_step: jax.Array | int) -> tuple[Theta, PyTree, dict]:
        grad, state, metrics = pes.estimate(theta, state, outer_step)
        return jax.tree.map(lambda g: factor * g, grad), state, metrics

    return Estimator(pes.init, estimate)


family, suite = gain, my_suite
recipe = Recipe(
    family=family,
    tasks=suite,
    episodes=Episodes(shortest=10, longest=20),
    estimator=Estimation(name="pes", num_samples=8, window=5, sigma=0.1),
    outer=OuterLoop(outer_steps=40, learning_rate=0.2, warmup=5),
)
