"""The recurrent network of VeLO and Celo: max-pooled mixing across tensors, then one LSTM state per tensor.

Source: google/learned_optimization, research/general_lopt/hyper_v2.py.
"""

import jax
import jax.numpy as jnp

from metaopt.core import Key, Theta
from metaopt.nn import dense, lstm
from metaopt.nn.lstm import LSTMState


def init(key: Key, num_in: int, hidden: int, heads: dict[str, int]) -> Theta:
    """Weights of the mixing layers, of the LSTM, its learned initial state (zeros at first), and of the heads.

    Args:
      key: random key.
      num_in: number of input features of a tensor.
      hidden: number of units.
      heads: number of outputs of each dense layer that reads the LSTM's output, by its name.
    """
    k_pooled, k_direct, k_lstm, k_heads = jax.random.split(key, 4)
    theta = {
        "pooled": dense.init(k_pooled, num_in, hidden),
        "direct": dense.init(k_direct, num_in, hidden),
        "lstm": lstm.init(k_lstm, hidden, hidden),
        "initial": lstm.zeros((1,), hidden)._asdict(),
    }
    for i, (name, num_out) in enumerate(heads.items()):
        theta[name] = dense.init(jax.random.fold_in(k_heads, i), hidden, num_out)
    return theta


def initial_state(theta: Theta, num_tensors: int) -> LSTMState:
    """The LSTM state before the first step, the same for every tensor; (num_tensors, hidden)."""
    hidden, cell = (jnp.tile(theta["initial"][name], (num_tensors, 1)) for name in LSTMState._fields)
    return LSTMState(hidden, cell)


def step(theta: Theta, x: jax.Array, state: LSTMState) -> LSTMState:
    """``lstm(direct(x) + max over tensors of relu(pooled(x)))`` for inputs x (num_tensors, num_in)."""
    mixed = dense.apply(theta["direct"], x) + jnp.max(jax.nn.relu(dense.apply(theta["pooled"], x)), axis=0)
    return lstm.step(theta["lstm"], mixed, state)
