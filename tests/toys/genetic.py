"""Kind "search": an evolution strategy whose step size and selection are learned, on shifted spheres.

Seconds on one core. The step size starts ten times too small; meta-training enlarges it, and the
meta-loss, the log of the relative distance to the optimum, falls.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from meta_train import Episodes, Estimation, OuterLoop, Recipe
from metaopt.core import Key, Learned, TaskParams, Theta

POPULATION_SIZE = 8


class Params(NamedTuple):
    sigma: jax.Array  # (), standard deviation of mutations
    temperature: jax.Array  # (), of selection, in ranks; 0 selects the best alone


class State(NamedTuple):
    mean: jax.Array  # (dim,)


class Search(NamedTuple):
    """An algorithm with the interface of evosax.

        x_i = m + sigma e_i,   e_i ~ N(0, I)
        m <- m + sum_i w_i (x_i - m) / sum_i w_i,   w_i = exp(-rank of f(x_i) / temperature)

    Candidates whose fitness is not finite have no weight; without any others, m stays.
    """

    default_params: Params

    def init(self, key: Key, mean: jax.Array, params: Params) -> State:
        del key, params
        return State(mean)

    def ask(self, key: Key, state: State, params: Params) -> tuple[jax.Array, State]:
        noise = jax.random.normal(key, (POPULATION_SIZE, state.mean.size))
        return state.mean + params.sigma * noise, state

    def tell(self, key: Key, population: jax.Array, fitness: jax.Array, state: State, params: Params):
        del key
        is_finite = jnp.isfinite(fitness)
        rank = jnp.argsort(jnp.argsort(jnp.where(is_finite, fitness, jnp.inf)))  # 0 is the best
        weights = jnp.where(is_finite, jnp.exp(-rank / params.temperature), 0.0)
        # The best has weight 1, so that the sum is 0 only where nothing is finite.
        moves = jnp.where(is_finite[:, None], population - state.mean, 0.0)
        return State(state.mean + weights @ moves / jnp.maximum(jnp.sum(weights), 1.0)), {}


def init(key: Key) -> Theta:
    del key
    return {"log_sigma": jnp.log(0.05), "log_temperature": jnp.log(4.0)}


def bind(theta: Theta, num_steps: jax.Array | int | None = None) -> Search:
    del num_steps
    return Search(Params(jnp.exp(theta["log_sigma"]), jnp.exp(theta["log_temperature"])))


@dataclasses.dataclass(frozen=True)
class Sphere:
    """Minimize |x - shift|^2 from the origin, shift ~ N(0, I); a step is a generation."""

    dim: int = 3
    name: str = "sphere"
    solved_by: tuple[str, ...] = ("search",)

    def traits(self) -> dict:
        return {"family": "sphere", "datasets": [], "architecture": {"dim": [self.dim, self.dim]}}

    def sample(self, key: Key) -> TaskParams:
        return jax.random.normal(key, (self.dim,))

    def init(self, task_params: TaskParams, key: Key) -> jax.Array:
        del task_params, key
        return jnp.zeros(self.dim)

    def start(self, algorithm: Any, task_params: TaskParams, x: jax.Array) -> Any:
        del task_params
        return algorithm.init(jax.random.key(0), x, algorithm.default_params)  # the first mean is not random

    def step(self, algorithm: Any, task_params: TaskParams, state: Any, key: Key) -> tuple[Any, jax.Array]:
        k_ask, k_tell = jax.random.split(key)
        population, state = algorithm.ask(k_ask, state, algorithm.default_params)
        fitness = jax.vmap(lambda x: self.fitness(task_params, x))(population)
        state, _ = algorithm.tell(k_tell, population, fitness, state, algorithm.default_params)
        return state, jnp.min(fitness)

    def solution(self, state: Any) -> jax.Array:
        return state.mean

    def evaluate(self, task_params: TaskParams, x: jax.Array, split: str, key: Key | None = None) -> dict:
        del split, key  # one surface, without noise
        return {"loss": self.fitness(task_params, x)}

    def fitness(self, shift: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sum((x - shift) ** 2)


def suite() -> tuple[Sphere, ...]:
    return (Sphere(),)


family = Learned(init, bind, kind="search")
recipe = Recipe(
    family=family,
    tasks=suite,
    episodes=Episodes(shortest=10, longest=20),
    estimator=Estimation(name="pes", num_samples=16, window=5, sigma=0.1),
    outer=OuterLoop(outer_steps=40, learning_rate=0.2, warmup=5),
)
