"""Kind "search": a learned evolution strategy with ask and tell, on shifted spheres."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from meta_train import Episodes, Estimation, OuterLoop, Recipe
from metaopt.core import Key, Learned, Theta

POPULATION = 8


class State(NamedTuple):
    mean: jax.Array  # (dim,)


class GaussianSearch(NamedTuple):
    """x_i = m + sigma e_i;   m <- m + exp(r) sum_i w_i (x_i - m), the weights w from the ranks of f(x_i)."""

    sigma: jax.Array
    rate: jax.Array

    def init(self, key: Key, mean: jax.Array, params: Any = None) -> State:
        del key, params
        return State(mean)

    def ask(self, key: Key, state: State, params: Any = None) -> tuple[jax.Array, State]:
        del params
        return state.mean + self.sigma * jax.random.normal(key, (POPULATION, state.mean.size)), state

    def tell(self, key: Key, population: jax.Array, fitness: jax.Array, state: State, params: Any = None):
        del key, params
        worst_last = jnp.argsort(jnp.where(jnp.isfinite(fitness), fitness, jnp.inf))
        # Half of the population counts, all of it alike; what is not finite is in the other half or adds nothing.
        elite = worst_last[: POPULATION // 2]
        moves = jnp.where(jnp.isfinite(fitness[elite])[:, None], population[elite] - state.mean, 0.0)
        return State(state.mean + self.rate * jnp.mean(moves, axis=0)), {}


def bind(theta: Theta, num_steps=None) -> GaussianSearch:
    del num_steps
    return GaussianSearch(jnp.exp(theta["log_sigma"]), jnp.exp(theta["log_rate"]))


family = Learned(
    init=lambda key: {"log_sigma": jnp.log(0.05), "log_rate": jnp.zeros(())},
    bind=bind,
    kind="search",
)


@dataclasses.dataclass(frozen=True)
class Sphere:
    """Minimize |x - shift|^2 from the origin; a step is a generation."""

    dim: int = 3
    name: str = "sphere"
    solved_by: tuple[str, ...] = ("search",)

    def traits(self):
        return {"family": "sphere", "datasets": [], "architecture": {"dim": [self.dim, self.dim]}}

    def sample(self, key):
        return jax.random.normal(key, (self.dim,))

    def init(self, task_params, key):
        del task_params, key
        return jnp.zeros(self.dim)

    def start(self, algorithm, task_params, x):
        del task_params
        return algorithm.init(jax.random.key(0), x, None)

    def step(self, algorithm, task_params, state, key):
        k_ask, k_tell = jax.random.split(key)
        population, state = algorithm.ask(k_ask, state, None)
        fitness = jax.vmap(lambda x: self._value(task_params, x))(population)
        state, _ = algorithm.tell(k_tell, population, fitness, state, None)
        return state, jnp.min(fitness)

    def solution(self, state):
        return state.mean

    def evaluate(self, task_params, x, split, key=None):
        del split, key
        return {"loss": self._value(task_params, x)}

    def _value(self, shift, x):
        return jnp.sum((x - shift) ** 2)


def suite():
    return (Sphere(),)


recipe = Recipe(
    family=family,
    tasks=suite,
    episodes=Episodes(shortest=10, longest=20),
    estimator=Estimation(name="pes", num_samples=16, window=5, sigma=0.1),
    outer=OuterLoop(outer_steps=60, learning_rate=0.1, warmup=5),
)
