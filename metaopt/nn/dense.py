"""A dense layer on the last axis."""

import math

import jax
import jax.numpy as jnp

from metaopt.core import Key, Theta


def init(key: Key, num_in: int, num_out: int) -> Theta:
    """Initial weights ``{"w": (num_in, num_out), "b": (num_out,)}``.

    ``w`` is truncated normal of scale 1/sqrt(num_in), cut at two standard deviations; ``b`` is zero.

    Args:
      key: random key.
      num_in: number of inputs.
      num_out: number of outputs.
    """
    draw = jax.random.truncated_normal(key, -2.0, 2.0, (num_in, num_out))
    return {"w": draw / math.sqrt(num_in), "b": jnp.zeros(num_out)}


def apply(weights: Theta, x: jax.Array) -> jax.Array:
    """``x w + b``; (..., num_in) to (..., num_out)."""
    return x @ weights["w"] + weights["b"]
