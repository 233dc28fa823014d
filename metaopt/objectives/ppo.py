"""ppo: PPO's clipped objective, whose clip is the meta-parameter.

Source: Schulman et al., "Proximal policy optimization algorithms", arXiv:1707.06347.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from metaopt.core import Drift, Key, Learned, Theta
from metaopt.objectives import drift


@dataclasses.dataclass(frozen=True)
class Config:
    clip: float = 0.2  # initial value, as for all that is learned

    def __post_init__(self):
        if not 0 < self.clip < 1:
            raise ValueError(f"clip must be between 0 and 1, got {self.clip}")


def build(config: Config = Config()) -> Learned:
    """Returns PPO: ``drift = relu((r - clip(r, 1 - eps, 1 + eps)) A)``; theta is log eps."""

    def init(key: Key) -> Theta:
        del key
        return {"log_clip": jnp.float32(math.log(config.clip))}

    def bind(theta: Theta, num_steps: jax.Array | int | None = None) -> Drift:
        del num_steps

        def ppo(log_ratio: jax.Array, advantage: jax.Array, progress: jax.Array | float | None = None) -> jax.Array:
            del progress
            return drift.clipped(log_ratio, advantage, jnp.exp(theta["log_clip"]))

        return ppo

    return Learned(init, bind, "drift")
