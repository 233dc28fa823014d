"""Kind "forecast": where parameters that approach their end exponentially will be some steps ahead."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from meta_train import Episodes, Estimation, OuterLoop, Recipe
from metaopt.core import Key, Learned, Theta

WINDOW, AHEAD = 4, 8  # snapshots seen, and steps from the last of them to the one that is asked for


def init(key: Key) -> Theta:
    """Nothing ahead but the last snapshot; a tuple and a list, as theta may be any tree."""
    del key
    return {"slopes": (jnp.zeros(WINDOW - 1), [jnp.zeros(())])}


def bind(theta: Theta, num_steps=None):
    """p(t + k) = p(t) + k sum_i w_i (p(t - i) - p(t - i - 1)) exp(b)."""
    del num_steps
    weights, (bias,) = theta["slopes"]

    def forecast(history: jax.Array, steps: int) -> jax.Array:
        """(window, num) snapshots -> (num,) parameters ``steps`` ahead of the last."""
        return history[-1] + steps * jnp.exp(bias) * jnp.tensordot(weights, jnp.diff(history, axis=0), axes=1)

    return forecast


family = Learned(init, bind, kind="forecast")


class Windows(NamedTuple):
    history: jax.Array  # (window, num)
    target: jax.Array  # (num,)


@dataclasses.dataclass(frozen=True)
class Trajectories:
    """Recorded windows of c + a exp(-r t); an episode is one step, and what is worked on is the forecast."""

    num: int = 64
    name: str = "trajectories"
    solved_by: tuple[str, ...] = ("forecast",)

    def traits(self):
        return {"family": "exponentials", "datasets": [], "architecture": {}}

    def sample(self, key):
        k_rate, k_size, k_end = jax.random.split(key, 3)
        rate = jax.random.uniform(k_rate, (self.num,), minval=0.05, maxval=0.1)
        size, end = jax.random.normal(k_size, (self.num,)), jax.random.normal(k_end, (self.num,))
        value = lambda t: end + size * jnp.exp(-rate * t)
        return Windows(jax.vmap(value)(jnp.arange(WINDOW)), value(WINDOW - 1 + AHEAD))

    def init(self, task_params, key):
        del key
        return task_params.history[-1]

    def start(self, algorithm, task_params, x):
        del algorithm, task_params
        return x

    def step(self, algorithm, task_params, state, key):
        del state, key
        forecast = algorithm(task_params.history, AHEAD)
        return forecast, self._error(task_params, forecast)

    def solution(self, state):
        return state

    def evaluate(self, task_params, x, split, key=None):
        del split, key
        return {"loss": self._error(task_params, x)}

    def _error(self, task_params, forecast):
        return jnp.mean((forecast - task_params.target) ** 2)


def suite():
    return (Trajectories(),)


recipe = Recipe(
    family=family,
    tasks=suite,
    episodes=Episodes(shortest=1, longest=1, split="train", objective="linear"),
    estimator=Estimation(name="tbptt", num_samples=8, window=1, sigma=0.0),
    outer=OuterLoop(outer_steps=60, learning_rate=0.05, warmup=5),
)
