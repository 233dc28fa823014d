"""lpo: Learned Policy Optimisation, a drift that is a small network of the ratio and the advantage.

Source: Lu et al., "Discovered policy optimisation", arXiv:2210.05639, section 4 and
luchris429/discovered-policy-optimisation.
"""

import dataclasses

import jax
import jax.numpy as jnp

from metaopt.core import Drift, Key, Learned, Theta
from metaopt.objectives import drift

NUM_FEATURES = 8


@dataclasses.dataclass(frozen=True)
class Config:
    hidden: int = 128  # units of the one hidden layer
    ppo_seeded: bool = True  # whether the network's output is added to PPO's drift, which it then begins as
    clip: float = 0.2  # of PPO, where seeded
    margin: float = 1e-4  # the drift is zero until the argument of its ReLU exceeds this
    largest_feature: float = 0.0  # features are clipped to +- this; 0 leaves them as they are, as published

    def __post_init__(self):
        if self.hidden < 1:
            raise ValueError(f"hidden must be at least 1, got {self.hidden}")
        if self.margin <= 0 or self.largest_feature < 0 or not 0 < self.clip < 1:
            raise ValueError(
                f"need margin > 0, largest_feature >= 0 and clip between 0 and 1, got {self.margin}, "
                f"{self.largest_feature} and {self.clip}"
            )


def build(config: Config = Config()) -> Learned:
    """Returns LPO.

    With features x of the ratio r and the advantage A,

        x = (l, l^2, e, e^2, A l, A l^2, A e, A e^2),   l = log r, e = 1 - r
        drift = relu(tanh(x w0) w1 - margin)            seeded: relu(ppo + tanh(x w0) w1 - margin)

    At r = 1 all features are zero and so, without biases, is the network: the margin keeps the drift
    zero around it, which makes its derivative zero too.

    Departure from the reference: it begins at w0 = w1 = 0, where theta + e and theta - e are the same
    function and evolution strategies see no difference. Here w0 is random, and w1 zero where the drift is
    seeded, so that it begins as PPO; a drift that is not would be zero everywhere and has a random w1.
    """

    def init(key: Key) -> Theta:
        return init_network(key, NUM_FEATURES, config)

    def bind(theta: Theta, num_steps: jax.Array | int | None = None) -> Drift:
        del num_steps

        def lpo(log_ratio: jax.Array, advantage: jax.Array, progress: jax.Array | float | None = None) -> jax.Array:
            del progress
            x = features(log_ratio, advantage, config.largest_feature)
            return of_network(theta, x, log_ratio, advantage, config)

        return lpo

    return Learned(init, bind, "drift")


def init_network(key: Key, num_features: int, config: Config) -> Theta:
    """Weights of a network without biases; where it is seeded, its output is zero."""
    k_first, k_second = jax.random.split(key)
    draw = jax.nn.initializers.lecun_normal()
    shape = (config.hidden, 1)
    return {
        "w0": draw(k_first, (num_features, config.hidden)),
        "w1": jnp.zeros(shape) if config.ppo_seeded else draw(k_second, shape),
    }


def features(log_ratio: jax.Array, advantage: jax.Array, largest: float) -> jax.Array:
    """The features (..., 8), clipped to +-``largest`` if that is not zero."""
    log = jnp.clip(log_ratio, -drift.LARGEST_LOG_RATIO, drift.LARGEST_LOG_RATIO)
    rest = 1.0 - jnp.exp(log)
    of_ratio = jnp.stack([log, log**2, rest, rest**2], axis=-1)
    x = jnp.concatenate([of_ratio, advantage[..., None] * of_ratio], axis=-1)
    return jnp.clip(x, -largest, largest) if largest else x


def of_network(theta: Theta, x: jax.Array, log_ratio: jax.Array, advantage: jax.Array, config: Config) -> jax.Array:
    """The drift of features (..., num_features)."""
    output = (jnp.tanh(x @ theta["w0"]) @ theta["w1"])[..., 0]
    seed = drift.clipped(log_ratio, advantage, config.clip) if config.ppo_seeded else 0.0
    return jax.nn.relu(seed + output - config.margin)
