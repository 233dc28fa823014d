"""A long short-term memory cell, in the convention of Haiku.

All families use this convention: gates in the order input, cell, forget, output, one bias, and
1 added to the forget gate, which is therefore open at first. PyTorch has the order i, f, g, o,
two biases that are summed, and adds nothing.

Source: Hochreiter and Schmidhuber, 1997; Jozefowicz et al., 2015 (the 1 of the forget gate);
google-deepmind/dm-haiku, haiku/_src/recurrent.py.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaopt.core import Key, Theta


class LSTMState(NamedTuple):
    hidden: jax.Array  # (..., hidden), which is also the output
    cell: jax.Array  # (..., hidden)


def init(key: Key, num_in: int, hidden: int) -> Theta:
    """Initial weights ``{"w": (num_in + hidden, 4 * hidden), "b": (4 * hidden,)}``.

    ``w`` is truncated normal of scale 1/sqrt(num_in + hidden), cut at two standard deviations;
    ``b`` is zero.

    Args:
      key: random key.
      num_in: number of input features.
      hidden: number of units.
    """
    fan_in = num_in + hidden
    draw = jax.random.truncated_normal(key, -2.0, 2.0, (fan_in, 4 * hidden))
    return {"w": draw / math.sqrt(fan_in), "b": jnp.zeros(4 * hidden)}


def zeros(shape: tuple[int, ...], hidden: int) -> LSTMState:
    """A state of zeros for a batch of ``shape``; its two arrays share no buffer, so it can be donated."""
    zeros = lambda: jnp.zeros((*shape, hidden), jnp.float32)
    return LSTMState(zeros(), zeros())


def step(weights: Theta, x: jax.Array, state: LSTMState) -> LSTMState:
    """One step; the output is ``hidden`` of the new state.

        i, g, f, o = split([x, h] w + b)
        c' = sigmoid(f + 1) c + sigmoid(i) tanh(g),   h' = sigmoid(o) tanh(c')

    Args:
      weights: weights as ``init`` returns them.
      x: input, (..., num_in).
      state: state, with the leading axes of ``x``.

    Returns:
      The new state.
    """
    gates = jnp.concatenate([x, state.hidden], axis=-1) @ weights["w"] + weights["b"]
    i, g, f, o = jnp.split(gates, 4, axis=-1)
    cell = jax.nn.sigmoid(f + 1.0) * state.cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    return LSTMState(jax.nn.sigmoid(o) * jnp.tanh(cell), cell)


def init_stack(key: Key, num_in: int, hidden: int, layers: int) -> Theta:
    """Initial weights ``{"layer0": ..., "layer1": ...}`` of cells of which each reads the output of the one before."""
    sizes = [num_in] + [hidden] * (layers - 1)
    return {f"layer{i}": init(jax.random.fold_in(key, i), size, hidden) for i, size in enumerate(sizes)}


def step_stack(weights: Theta, x: jax.Array, states: tuple[LSTMState, ...]) -> tuple[LSTMState, ...]:
    """One step of every layer; the output is ``hidden`` of the last new state."""
    new_states = []
    for i, state in enumerate(states):
        new_states.append(step(weights[f"layer{i}"], x, state))
        x = new_states[-1].hidden
    return tuple(new_states)
