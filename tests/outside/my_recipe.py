"""Seconds on one core: a user's own family, task, suite and estimator, all in one file.

Expected: the learning rate of gradient descent rises from 0.01 and the meta-loss falls.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from meta_train import Episodes, Estimation, OuterLoop, Recipe, Run
from meta_train.estimators import es
from metaopt.core import Estimator, Learned
from tasks import Supervised


def gain(rate: float = 0.01) -> Learned:
    """Gradient descent whose rate, a learned number, may differ in the second half of training."""

    def init(key):
        del key
        return {"log_rate": jnp.log(rate), "halves": (jnp.zeros(()), [jnp.zeros(1)])}

    def bind(theta, num_steps=None):
        first, (second,) = theta["halves"]

        def schedule(step):
            later = 0.0 if num_steps is None else jnp.where(2 * step < num_steps, first, second[0])
            return jnp.exp(theta["log_rate"] + later)

        return optax.sgd(schedule)

    return Learned(init, bind)


@dataclasses.dataclass(frozen=True)
class Bowl(Supervised):
    """Minimise a sum of squares with sampled curvatures."""

    dim: int = 3
    name: str = "bowl"

    def traits(self):
        return {"family": "bowl", "datasets": [], "architecture": {"dim": [self.dim, self.dim]}}

    def sample(self, key):
        return jax.random.uniform(key, (self.dim,), minval=0.5, maxval=2.0)

    def init(self, task_params, key):
        return jax.random.normal(key, (self.dim,))

    def loss(self, task_params, params, key, split="train"):
        return jnp.sum(task_params * params**2)


def my_suite():
    return (Bowl(),)


def half_pes(problem, config, mesh, factor: float = 0.5) -> Estimator:
    """PES, its gradient times a factor."""
    pes = es.pes(problem, config, mesh)

    def estimate(theta, state, outer_step):
        grad, state, metrics = pes.estimate(theta, state, outer_step)
        return jax.tree.map(lambda g: factor * g, grad), state, metrics

    return Estimator(pes.init, estimate)


recipe = Recipe(
    family=gain,
    tasks=my_suite,
    episodes=Episodes(shortest=20, longest=40),
    estimator=Estimation(name=half_pes, num_samples=8, window=5, sigma=0.1),
    outer=OuterLoop(outer_steps=200, learning_rate=0.05, warmup=2),
    run=Run(steps_per_dispatch=5, save_every=10),
)
