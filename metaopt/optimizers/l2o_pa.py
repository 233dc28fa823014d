"""l2o_pa: a proximal gradient step with momentum whose coefficients an LSTM chooses.

A rule that converges to a fixed point on every convex problem must be a preconditioned
proximal step with momentum and bias; only the coefficients of this form are learned.

Source: Liu et al., "Toward constituting mathematical structures for learning to
optimize", arXiv:2305.18577; xhchrn/MS4L2O, optimizers/coord_math_lstm.py.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metaopt.core import Key, Learned, Params, Theta
from metaopt.nn import lstm, mlp
from metaopt.nn.lstm import LSTMState
from metaopt.optimizers.common import coordinates, rule

HEADS = ("p", "a", "b", "b1", "b2")
NORMS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "identity": lambda x: x,
    "exp": jnp.exp,
    "softplus": jax.nn.softplus,
    "double_sigmoid": lambda x: 2.0 * jax.nn.sigmoid(x),  # maps zero to one
}


@dataclasses.dataclass(frozen=True)
class Config:
    heads: str = "p,a"  # learned coefficients, some of p, a, b, b1, b2
    norm: str = "double_sigmoid"  # function that p, a and b go through, one of NORMS
    scale_p: float = 1.0  # multiplies the coefficient p
    scale_a: float = 1.0  # multiplies the coefficient a
    step_size: float = 0.9999  # s: just below 1 / L for a gradient with Lipschitz constant L
    l1: float = 0.0  # weight of the penalty: the optimizer minimizes f + l1 |.|_1 and is given gradients of f
    hidden: int = 20  # units in each layer of the LSTM
    bugged_biases: bool = False  # b1 and b2 go through the norm too, a defect of the reference
    layers: int = 2  # layers of the LSTM

    def __post_init__(self):
        unknown = [name for name in self.names if name not in HEADS]
        if unknown or len(set(self.names)) < len(self.names):
            raise ValueError(f"heads must be of {', '.join(HEADS)}, each at most once, got {self.heads!r}")
        if self.norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {self.norm!r}")
        if self.step_size <= 0 or self.l1 < 0:
            raise ValueError(f"need step_size > 0 and l1 >= 0, got {self.step_size} and {self.l1}")
        if self.hidden < 1 or self.layers < 1:
            raise ValueError(f"hidden and layers must be at least 1, got {self.hidden} and {self.layers}")

    @property
    def names(self) -> list[str]:
        """Names of the learned coefficients, in the order of the network's outputs."""
        return self.heads.split(",")


class State(NamedTuple):
    lead: Params  # y - x: the parameters minus the last proximal step
    lstm: tuple[LSTMState, ...]  # of each layer; trees like the parameters of arrays (*shape, hidden)


class Coefficients(NamedTuple):
    """Coefficients of one tensor: arrays of its shape, or the constant of a coefficient that is not learned."""

    p: jax.Array | float = 1.0
    a: jax.Array | float = 0.0
    b: jax.Array | float = 1.0
    b1: jax.Array | float = 0.0
    b2: jax.Array | float = 0.0


def build(config: Config = Config()) -> Learned:
    """Returns L2O-PA, or with other ``heads`` its ablations, for f + l1 |.|_1.

    With y the parameters, x the last proximal step, s the step size, coefficients that are
    outputs of the LSTM for the input (grad f(y), y), and all products coordinate by coordinate,

        yhat = y - p s grad f(y),   xhat = x - p s grad f(x)
        x' = prox_{p s r}(b yhat + (1 - b) xhat + b1),   r = l1 |.|_1
        y' = x' + a (x' - x) + b2

    Before the first step x = y. Coefficients that are not among the heads are p = 1, a = 0,
    b = 1, b1 = 0, b2 = 0. Meta-gradients do not flow through the LSTM's input. Memory: one
    float32 copy of the parameters and two for each unit of the LSTM. It does not read ``num_steps``. An
    entry of a gradient that is NaN, infinite or larger than 1e14 counts as zero.

    Raises:
      ValueError: from ``update``, with head b and without ``value_fn=``, the function f of
        the parameters, whose gradient at x is then needed.
    """
    names = config.names

    def init(key: Key) -> Theta:
        k_lstm, k_heads = jax.random.split(key)
        heads = mlp.init(k_heads, (config.hidden, config.hidden, len(names)))
        # With zeros the norm alone decides the initial coefficients, by default p = a = 1.
        heads["w1"] = jnp.zeros_like(heads["w1"])
        return {"lstm": lstm.init_stack(k_lstm, 2, config.hidden, config.layers), "heads": heads}

    def bind(theta: Theta, num_steps: jax.Array | int | None = None) -> optax.GradientTransformationExtraArgs:
        del num_steps

        def init_state(params: Params) -> State:
            zeros = coordinates.zeros_lstm(params, config.hidden, config.layers)
            return State(jax.tree.map(jnp.zeros_like, params), zeros)

        def update(
            grads: Params,
            state: State,
            params: Params,
            value: jax.Array | None,
            value_fn: Callable[[Params], jax.Array] | None,
        ) -> tuple[Params, State]:
            del value
            grads_x = grads
            if "b" in names:
                if value_fn is None:
                    raise ValueError(
                        "l2o_pa with head b takes a second gradient: call update(grads, state, params, value_fn=f)"
                    )
                grads_x = jax.grad(value_fn)(jax.tree.map(jnp.subtract, params, state.lead))

            def update_tensor(
                y: jax.Array, g: jax.Array, g_x: jax.Array, lead: jax.Array, lstm_state: tuple
            ) -> tuple[jax.Array, State]:
                inputs = jax.lax.stop_gradient(jnp.stack([g, y], axis=-1))
                lstm_state = lstm.step_stack(theta["lstm"], inputs, lstm_state)
                c = _coefficients(theta["heads"], lstm_state[-1].hidden, config)
                x, s = y - lead, c.p * config.step_size
                inside = y - s * g
                if "b" in names:
                    inside = c.b * inside + (1.0 - c.b) * (x - s * g_x)
                x_new = soft_threshold(inside + c.b1, s * config.l1) if config.l1 else inside + c.b1
                lead = c.a * (x_new - x) + c.b2
                return x_new + lead - y, State(lead, lstm_state)

            return coordinates.map_coordinates(update_tensor, (params, grads, grads_x), state)

        return rule.transformation(init_state, update, name="l2o_pa", reads=("value_fn",), stacks=True)

    return Learned(init, bind)


def soft_threshold(x: jax.Array, threshold: jax.Array | float) -> jax.Array:
    """``sign(x) max(|x| - threshold, 0)``, the proximal map of ``threshold |.|_1``."""
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - threshold, 0.0)


def _coefficients(heads: Theta, hidden: jax.Array, config: Config) -> Coefficients:
    """The coefficients of every coordinate, from the LSTM's output (*shape, hidden)."""
    outputs = jax.nn.relu(hidden @ heads["w0"] + heads["b0"]) @ heads["w1"] + heads["b1"]
    scales = {"p": config.scale_p, "a": config.scale_a}
    coefficients = {}
    for i, name in enumerate(config.names):
        has_norm = name not in ("b1", "b2") or config.bugged_biases
        x = NORMS[config.norm](outputs[..., i]) if has_norm else outputs[..., i]
        coefficients[name] = scales[name] * x if name in scales else x
    return Coefficients(**coefficients)
