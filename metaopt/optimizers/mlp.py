"""mlp: a per-parameter network that reads the gradient and six momenta.

Source: Metz et al., "Understanding and correcting pathologies in the training of
learned optimizers", arXiv:1810.10180; MLPLOpt in google/learned_optimization,
learned_optimizers/mlp_lopt.py.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaopt.core import Key, LearnedOptimizer, Params, Theta
from metaopt.optimizers import features, rule
from metaopt.optimizers.accumulators import ema

MOMENTUM_DECAYS = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
NUM_CHANNELS = 2 + len(MOMENTUM_DECAYS)


@dataclasses.dataclass(frozen=True)
class Config:
    hidden: int = 32  # units in each hidden layer
    layers: int = 2  # hidden layers
    step_multiplier: float = 1e-3  # scales the whole update
    exp_multiplier: float = 1e-3  # range of the learned log step size

    def __post_init__(self):
        if self.hidden < 1 or self.layers < 1:
            raise ValueError(f"hidden and layers must be at least 1, got {self.hidden} and {self.layers}")


class State(NamedTuple):
    step: jax.Array  # () int32
    momentum: tuple[Params, ...]  # one tree per decay, float32


def build(config: Config = Config()) -> LearnedOptimizer:
    """Returns the per-parameter MLP optimizer (MLPLOpt).

    For each parameter, with the gradient, the parameter and six momenta as
    normalised channels f and 11 time features e,

        (d, a) = network(f, e),   p <- p - step_multiplier * d * exp(exp_multiplier * a)

    Memory: six float32 copies of the parameters. It reads neither ``value`` nor
    ``num_steps``.
    """

    def init(key: Key) -> Theta:
        num_in = NUM_CHANNELS + len(features.TIME_SCALES)
        return {"network": features.init_network(key, (num_in, *[config.hidden] * config.layers, 2))}

    def bind(theta: Theta, num_steps=None):
        del num_steps

        def init_state(params):
            zeros = lambda _: jax.tree.map(jnp.zeros_like, params)
            return State(jnp.zeros((), jnp.int32), tuple(map(zeros, MOMENTUM_DECAYS)))

        def update(grads, state, params, value):
            del value
            momentum = tuple(
                jax.tree.map(lambda m, g, b=b: ema(b, m, g), old, grads)
                for b, old in zip(MOMENTUM_DECAYS, state.momentum, strict=True)
            )
            time = features.time_features(state.step)

            def leaf(p, g, *m):
                return features.learned_step(
                    theta["network"], [g, p, *m], time, p.shape, config.step_multiplier, config.exp_multiplier
                )

            return jax.tree.map(leaf, params, grads, *momentum), State(state.step + 1, momentum)

        return rule.transformation(init_state, update, name="mlp")

    return LearnedOptimizer(init, bind)
