"""A long short-term memory cell, in the convention of Haiku.

One convention serves every family: gates in the order input, cell, forget, output, one
bias, and a forget gate that starts open because 1 is added to it. PyTorch's has the
order i, f, g, o, two biases that are summed, and no 1.

Source: Hochreiter and Schmidhuber, 1997; Jozefowicz et al., 2015 (the forget gate's 1);
google-deepmind/dm-haiku, haiku/_src/recurrent.py.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaopt.core import Key, Theta


class LSTMState(NamedTuple):
    hidden: jax.Array  # (..., hidden), also the output
    cell: jax.Array  # (..., hidden)


def init(key: Key, num_in: int, hidden: int) -> Theta:
    """Weights ``{"w": (num_in + hidden, 4 * hidden), "b": (4 * hidden,)}``.

    ``w`` is normal, cut at two standard deviations of 1/sqrt(num_in + hidden); ``b`` zero.
    """
    fan_in = num_in + hidden
    draw = jax.random.truncated_normal(key, -2.0, 2.0, (fan_in, 4 * hidden))
    return {"w": draw / math.sqrt(fan_in), "b": jnp.zeros(4 * hidden)}


def zeros(shape: tuple[int, ...], hidden: int) -> LSTMState:
    """The state before the first step, for ``shape`` rows; no buffer is shared."""
    return LSTMState(jnp.zeros((*shape, hidden)), jnp.zeros((*shape, hidden)))


def step(weights: Theta, x: jax.Array, state: LSTMState) -> LSTMState:
    """One step of every row.

        i, g, f, o = split([x, h] w + b)
        c' = sigmoid(f + 1) c + sigmoid(i) tanh(g),   h' = sigmoid(o) tanh(c')

    Args:
      weights: as ``init`` returns.
      x: (..., num_in).
      state: of the same rows.
    """
    gates = jnp.concatenate([x, state.hidden], axis=-1) @ weights["w"] + weights["b"]
    i, g, f, o = jnp.split(gates, 4, axis=-1)
    cell = jax.nn.sigmoid(f + 1.0) * state.cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    return LSTMState(jax.nn.sigmoid(o) * jnp.tanh(cell), cell)


def init_stack(key: Key, num_in: int, hidden: int, layers: int) -> Theta:
    """Weights ``{"layer0": ..., "layer1": ...}`` of cells that read one another's output."""
    sizes = [num_in] + [hidden] * (layers - 1)
    return {f"layer{i}": init(jax.random.fold_in(key, i), size, hidden) for i, size in enumerate(sizes)}


def zeros_stack(shape: tuple[int, ...], hidden: int, layers: int) -> tuple[LSTMState, ...]:
    """The states of all layers before the first step."""
    return tuple(zeros(shape, hidden) for _ in range(layers))


def step_stack(weights: Theta, x: jax.Array, states: tuple[LSTMState, ...]) -> tuple[LSTMState, ...]:
    """One step of every layer; the output is ``hidden`` of the last."""
    stepped = []
    for i, state in enumerate(states):
        stepped.append(step(weights[f"layer{i}"], x, state))
        x = stepped[-1].hidden
    return tuple(stepped)
