"""dpo: Discovered Policy Optimisation, a closed form found in what LPO had learned.

Source: Lu et al., "Discovered policy optimisation", arXiv:2210.05639, section 5.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from metaopt.core import Drift, Key, Learned, Theta
from metaopt.objectives.drift import ratio


@dataclasses.dataclass(frozen=True)
class Config:
    alpha: float = 2.0  # initial values, as for all that is learned
    beta: float = 0.6

    def __post_init__(self):
        if self.alpha <= 0 or self.beta <= 0:
            raise ValueError(f"alpha and beta must be above 0, got {self.alpha} and {self.beta}")


def build(config: Config = Config()) -> Learned:
    """Returns DPO; theta is log alpha and log beta.

    drift = relu((r - 1) A - alpha tanh((r - 1) A / alpha))       if A >= 0
            relu(log(r) A - beta tanh(log(r) A / beta))           if A < 0
    """

    def init(key: Key) -> Theta:
        del key
        return {"log_alpha": jnp.float32(math.log(config.alpha)), "log_beta": jnp.float32(math.log(config.beta))}

    def bind(theta: Theta, num_steps: jax.Array | int | None = None) -> Drift:
        del num_steps
        alpha, beta = jnp.exp(theta["log_alpha"]), jnp.exp(theta["log_beta"])

        def dpo(log_ratio: jax.Array, advantage: jax.Array, progress: jax.Array | float | None = None) -> jax.Array:
            del progress
            rise, fall = (ratio(log_ratio) - 1.0) * advantage, log_ratio * advantage
            return jnp.where(advantage >= 0.0, _beyond(rise, alpha), _beyond(fall, beta))

        return dpo

    return Learned(init, bind, "drift")


def _beyond(x: jax.Array, scale: jax.Array) -> jax.Array:
    """``relu(x - scale tanh(x / scale))``: of third order at zero, x - scale far above it."""
    return jax.nn.relu(x - scale * jnp.tanh(x / scale))
