"""The recurrent part of VeLO and Celo: rows that see each other, then a memory of their own.

Source: google/learned_optimization, research/general_lopt/hyper_v2.py.
"""

import math

import jax
import jax.numpy as jnp

from metaopt.core import Key, Theta
from metaopt.nn import lstm
from metaopt.nn.lstm import LSTMState


def init(key: Key, num_in: int, hidden: int, heads: dict[str, int]) -> Theta:
    """Mixing, LSTM, its learned start (zeros) and a dense layer for each of ``heads``."""
    k_pooled, k_direct, k_lstm, k_heads = jax.random.split(key, 4)
    theta = {
        "pooled": init_dense(k_pooled, num_in, hidden),
        "direct": init_dense(k_direct, num_in, hidden),
        "lstm": lstm.init(k_lstm, hidden, hidden),
        "initial": lstm.zeros((1,), hidden)._asdict(),
    }
    for i, (name, size) in enumerate(heads.items()):
        theta[name] = init_dense(jax.random.fold_in(k_heads, i), hidden, size)
    return theta


def start(theta: Theta, num_rows: int) -> LSTMState:
    """Every row begins alike."""
    tile = lambda x: jnp.tile(x, (num_rows, 1))
    return LSTMState(tile(theta["initial"]["hidden"]), tile(theta["initial"]["cell"]))


def step(theta: Theta, x: jax.Array, state: LSTMState) -> LSTMState:
    """``lstm(direct(x) + max over rows of relu(pooled(x)))`` of (num_rows, num_in) inputs."""
    mixed = dense(theta["direct"], x) + jnp.max(jax.nn.relu(dense(theta["pooled"], x)), axis=0)
    return lstm.step(theta["lstm"], mixed, state)


def init_dense(key: Key, num_in: int, num_out: int) -> Theta:
    draw = jax.random.truncated_normal(key, -2.0, 2.0, (num_in, num_out))
    return {"w": draw / math.sqrt(num_in), "b": jnp.zeros(num_out)}


def dense(theta: Theta, x: jax.Array) -> jax.Array:
    return x @ theta["w"] + theta["b"]
