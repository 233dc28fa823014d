"""coordinate_lstm: one small LSTM whose output for a coordinate is its update; every coordinate has its own state.

Sources: "l2o_dm", Andrychowicz et al., "Learning to learn by gradient descent by
gradient descent", arXiv:1606.04474; "rnnprop", Lv, Jiang and Li, "Learning gradient
descent: better generalization and longer horizons", arXiv:1703.03633; vfleaking/rnnprop,
nn_opt/rnn.py.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metaopt.core import Key, Learned, Params, Theta
from metaopt.nn import lstm, mlp
from metaopt.nn.lstm import LSTMState
from metaopt.optimizers.common import coordinates, roots, rule
from metaopt.optimizers.common.accumulators import ema

RULES = ("l2o_dm", "rnnprop")
LOG_RANGE = 10.0  # l2o_dm: the LSTM reads gradients above exp(-10) on a log scale
DECAY = 0.95  # rnnprop: decay of both moments
EPS = 1e-8  # rnnprop: added to the root of the second moment


@dataclasses.dataclass(frozen=True)
class Config:
    rule: str = "l2o_dm"  # or "rnnprop"
    hidden: int = 20  # units in each layer
    layers: int = 2  # layers of the LSTM
    scale: float = 0.1  # multiplies the output; the largest step of rnnprop

    def __post_init__(self):
        if self.rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}, got {self.rule!r}")
        if self.hidden < 1 or self.layers < 1:
            raise ValueError(f"hidden and layers must be at least 1, got {self.hidden} and {self.layers}")


class State(NamedTuple):
    step: jax.Array  # () int32
    moments: tuple[Params, ...]  # rnnprop: first and second, biased toward zero; l2o_dm: none
    lstm: tuple[LSTMState, ...]  # of each layer; trees like the parameters of arrays (*shape, hidden)


def build(config: Config = Config()) -> Learned:
    """Returns a coordinate-wise LSTM optimizer.

    With h the output of the LSTM for a coordinate and o = h w + b,

        l2o_dm    p <- p + scale o,         the LSTM reads  ``log_and_sign(g)``
        rnnprop   p <- p - scale tanh(o),   the LSTM reads  ELU(dense(g / (sqrt(v) + eps), m / (sqrt(v) + eps)))

    m and v are Adam's bias-corrected moments, both with decay 0.95. Memory: two float32
    copies of the parameters for each unit, and two more for rnnprop. It reads neither
    ``value`` nor ``num_steps``. An entry of a gradient that is NaN, infinite or larger than 1e14 counts
    as zero.
    """
    rnnprop = config.rule == "rnnprop"

    def init(key: Key) -> Theta:
        k_lstm, k_output, k_input = jax.random.split(key, 3)
        theta = {
            "lstm": lstm.init_stack(k_lstm, config.hidden if rnnprop else 2, config.hidden, config.layers),
            "output": mlp.init(k_output, (config.hidden, 1)),
        }
        if rnnprop:
            theta["input"] = mlp.init(k_input, (2, config.hidden))
        return theta

    def bind(theta: Theta, num_steps: jax.Array | int | None = None) -> optax.GradientTransformationExtraArgs:
        del num_steps

        def init_state(params: Params) -> State:
            return State(
                jnp.zeros((), jnp.int32),
                tuple(jax.tree.map(jnp.zeros_like, params) for _ in range(2 if rnnprop else 0)),
                coordinates.zeros_lstm(params, config.hidden, config.layers),
            )

        def update(grads: Params, state: State, params: Params, value: jax.Array | None) -> tuple[Params, State]:
            del params, value
            step, moments = state.step + 1, ()
            if rnnprop:
                powers = (grads, jax.tree.map(jnp.square, grads))
                average = functools.partial(jax.tree.map, functools.partial(ema, DECAY))
                moments = tuple(map(average, state.moments, powers))

            def update_tensor(g: jax.Array, moments: tuple, lstm_state: tuple) -> tuple[jax.Array, tuple]:
                x = _relative_to_rms(theta["input"], step, g, *moments) if rnnprop else log_and_sign(g)
                lstm_state = lstm.step_stack(theta["lstm"], x, lstm_state)
                out = (lstm_state[-1].hidden @ theta["output"]["w0"] + theta["output"]["b0"])[..., 0]
                return config.scale * (-jnp.tanh(out) if rnnprop else out), (lstm_state,)

            by_tensor = jax.tree.map(lambda g, *moments: moments, grads, *moments)
            updates, (lstm_states,) = coordinates.map_coordinates(update_tensor, (grads, by_tensor), (state.lstm,))
            return updates, State(step, moments, lstm_states)

        return rule.transformation(init_state, update, name=f"coordinate_lstm ({config.rule})", stacks=True)

    return Learned(init, bind)


def log_and_sign(g: jax.Array) -> jax.Array:
    """Encodes gradients of any magnitude as two numbers of moderate size; (*shape, 2).

        (log|g| / p, sign(g))   if |g| >= exp(-p),   else  (-1, exp(p) g),   p = 10

    Source: arXiv:1606.04474, appendix A.
    """
    size, smallest = jnp.abs(g), math.exp(-LOG_RANGE)
    large = size >= smallest
    log = jnp.log(jnp.maximum(size, smallest)) / LOG_RANGE  # -1 where the gradient is small
    return jnp.stack([log, jnp.where(large, jnp.sign(g), g / smallest)], axis=-1)


def _relative_to_rms(dense: Theta, step: jax.Array, g: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
    """The input of rnnprop's LSTM, (*shape, hidden): g and m relative to sqrt(v), through a dense layer and ELU."""
    correction = 1.0 - DECAY ** step.astype(jnp.float32)
    rms = roots.sqrt(v / correction) + EPS
    return jax.nn.elu(jnp.stack([g / rms, m / correction / rms], axis=-1) @ dense["w0"] + dense["b0"])
