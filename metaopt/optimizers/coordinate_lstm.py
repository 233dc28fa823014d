"""coordinate_lstm: one small LSTM, run on every coordinate apart, with no structure around it.

Sources: "l2o_dm", Andrychowicz et al., "Learning to learn by gradient descent by
gradient descent", arXiv:1606.04474; "rnnprop", Lv, Jiang and Li, "Learning gradient
descent: better generalization and longer horizons", arXiv:1703.03633; vfleaking/rnnprop,
nn_opt/rnn.py.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaopt.core import Key, Learned, Params, PyTree, Theta
from metaopt.nn import lstm, mlp
from metaopt.optimizers.common import coordinates, rule
from metaopt.optimizers.common.accumulators import differentiable, ema

RULES = ("l2o_dm", "rnnprop")
LOG_RANGE = 10.0  # l2o_dm: gradients above exp(-10) are seen on a log scale
DECAY = 0.95  # rnnprop: of both moments
EPS = 1e-8  # rnnprop: added to the root of the second moment


@dataclasses.dataclass(frozen=True)
class Config:
    rule: str = "l2o_dm"  # or rnnprop
    hidden: int = 20  # units in each layer
    layers: int = 2
    scale: float = 0.1  # of the output; the largest step of rnnprop

    def __post_init__(self):
        if self.rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}, got {self.rule!r}")
        if self.hidden < 1 or self.layers < 1:
            raise ValueError(f"hidden and layers must be at least 1, got {self.hidden} and {self.layers}")


class State(NamedTuple):
    step: jax.Array  # () int32
    moments: tuple[Params, ...]  # rnnprop: first and second, not corrected; l2o_dm: none
    rows: PyTree  # of each tensor the LSTMState of each layer, (*shape, hidden)


def build(config: Config = Config()) -> Learned:
    """Returns a coordinate-wise LSTM optimizer.

    With h the output of the LSTM for a coordinate and o = h w + b,

        l2o_dm    p <- p + scale o,         the LSTM reads  ``log_and_sign(g)``
        rnnprop   p <- p - scale tanh(o),   it reads  ELU(dense(g / (sqrt(v) + eps), m / (sqrt(v) + eps)))

    m and v as in Adam, corrected for their start, both with decay 0.95. Memory: two
    float32 copies of the parameters for each unit, and two more for rnnprop. It reads
    neither ``value`` nor ``num_steps``.
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

    def bind(theta: Theta, num_steps=None):
        del num_steps

        def init_state(params):
            zeros = lambda: jax.tree.map(jnp.zeros_like, params)
            return State(
                jnp.zeros((), jnp.int32),
                (zeros(), zeros()) if rnnprop else (),
                jax.tree.map(lambda p: lstm.zeros_stack(p.shape, config.hidden, config.layers), params),
            )

        def update(grads, state, params, value):
            del params, value
            step, moments = state.step + 1, ()
            if rnnprop:
                powers = (grads, jax.tree.map(jnp.square, grads))
                average = lambda old, new: jax.tree.map(lambda o, n: ema(DECAY, o, n), old, new)
                moments = tuple(map(average, state.moments, powers))

            def leaf(g, moments, rows):
                x = _relative_to_rms(theta["input"], step, g, *moments) if rnnprop else log_and_sign(g)
                rows = lstm.step_stack(theta["lstm"], x, rows)
                out = (rows[-1].hidden @ theta["output"]["w0"] + theta["output"]["b0"])[..., 0]
                return config.scale * (-jnp.tanh(out) if rnnprop else out), (rows,)

            of_tensor = jax.tree.map(lambda g, *moments: moments, grads, *moments)
            updates, (rows,) = coordinates.map_coordinates(leaf, (grads, of_tensor), (state.rows,))
            return updates, State(step, moments, rows)

        return rule.transformation(init_state, update, name=f"coordinate_lstm ({config.rule})")

    return Learned(init, bind)


def log_and_sign(g: jax.Array) -> jax.Array:
    """Gradients of any size as two numbers of moderate size; (*shape, 2).

        (log|g| / p, sign(g))   if |g| >= exp(-p),   else  (-1, exp(p) g),   p = 10

    Source: arXiv:1606.04474, appendix A.
    """
    size, smallest = jnp.abs(g), math.exp(-LOG_RANGE)
    large = size >= smallest
    log = jnp.log(jnp.maximum(size, smallest)) / LOG_RANGE  # -1 where the gradient is small
    return jnp.stack([log, jnp.where(large, jnp.sign(g), g / smallest)], axis=-1)


def _relative_to_rms(dense: Theta, step: jax.Array, g: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
    """What rnnprop's LSTM reads; (*shape, hidden)."""
    correction = 1.0 - DECAY ** step.astype(jnp.float32)
    rms = jnp.sqrt(differentiable(v / correction)) + EPS
    return jax.nn.elu(jnp.stack([g / rms, m / correction / rms], axis=-1) @ dense["w0"] + dense["b0"])
