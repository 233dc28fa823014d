"""Kind "forecast": where parameters that decay towards a limit will be some steps ahead.

Seconds on one core. The forecast starts as the last snapshot itself; meta-training extends the line
through the window, and the meta-loss, an error relative to that of standing still, falls below 1.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from meta_train import Episodes, Estimation, OuterLoop, Recipe
from metaopt.core import Key, Learned, Theta

WINDOW = 4  # snapshots that a forecast is made from
AHEAD = 8  # steps from the last of them to the one that is forecast

Forecast = Callable[[jax.Array, int], jax.Array]


def init(key: Key) -> Theta:
    """A slope of zero. Theta has a tuple and a list in it, as it may be any tree."""
    del key
    return {"slope": (jnp.zeros(WINDOW - 1), [jnp.zeros(())])}


def bind(theta: Theta, num_steps: jax.Array | int | None = None) -> Forecast:
    """p(t + k) = p(t) + k exp(b) sum_i w_i (p(t - i) - p(t - i - 1)): a line whose slope is a weighted mean."""
    del num_steps
    weights, (log_scale,) = theta["slope"]

    def forecast(history: jax.Array, steps: int) -> jax.Array:
        """(window, ...) snapshots, the last one the newest -> (...) parameters ``steps`` after it."""
        slope = jnp.exp(log_scale) * jnp.tensordot(weights, jnp.diff(history, axis=0), axes=1)
        return history[-1] + steps * slope

    return forecast


class Windows(NamedTuple):
    history: jax.Array  # (WINDOW, batch_size)
    target: jax.Array  # (batch_size,), AHEAD steps after the last snapshot


@dataclasses.dataclass(frozen=True)
class Trajectories:
    """Trajectories c + a exp(-r t) of one parameter each; an episode is one step: the forecast of a batch of windows.

    What is worked on is the forecast itself, at first the last snapshot, so that it can be evaluated.
    """

    batch_size: int = 64
    name: str = "trajectories"
    solved_by: tuple[str, ...] = ("forecast",)

    def traits(self) -> dict:
        return {"family": "damped exponentials", "datasets": [], "architecture": {}}

    def sample(self, key: Key) -> Windows:
        k_rate, k_size, k_limit = jax.random.split(key, 3)
        rate = jax.random.uniform(k_rate, (self.batch_size,), minval=0.05, maxval=0.1)
        size, limit = (jax.random.normal(k, (self.batch_size,)) for k in (k_size, k_limit))
        times = jnp.append(jnp.arange(WINDOW), WINDOW - 1 + AHEAD)
        values = limit + size * jnp.exp(-rate * times[:, None])
        return Windows(values[:-1], values[-1])

    def init(self, task_params: Windows, key: Key) -> jax.Array:
        del key
        return task_params.history[-1]

    def start(self, algorithm: Forecast, task_params: Windows, x: jax.Array) -> jax.Array:
        del algorithm, task_params
        return x

    def step(
        self, algorithm: Forecast, task_params: Windows, state: jax.Array, key: Key
    ) -> tuple[jax.Array, jax.Array]:
        del state, key
        forecast = algorithm(task_params.history, AHEAD)
        return forecast, self.error(task_params, forecast)

    def solution(self, state: jax.Array) -> jax.Array:
        return state

    def evaluate(self, task_params: Windows, x: jax.Array, split: str, key: Key | None = None) -> dict:
        del split, key  # the windows are the problem; those of another problem are fresh
        return {"loss": self.error(task_params, x)}

    def error(self, windows: Windows, forecast: jax.Array) -> jax.Array:
        return jnp.mean((forecast - windows.target) ** 2)


def suite() -> tuple[Trajectories, ...]:
    return (Trajectories(),)


family = Learned(init, bind, kind="forecast")
recipe = Recipe(
    family=family,
    tasks=suite,
    episodes=Episodes(shortest=1, longest=1, split="train", objective="linear"),
    estimator=Estimation(name="tbptt", num_samples=8, window=1, sigma=0.0),
    outer=OuterLoop(outer_steps=40, learning_rate=0.1, warmup=5),
)
