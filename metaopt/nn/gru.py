"""A gated recurrent unit, in the convention of Flax's GRUCell.

Source: Cho et al., arXiv:1406.1078; google/flax, flax/linen/recurrent.py.
"""

import math

import jax
import jax.numpy as jnp

from metaopt.core import Key, Theta


def init(key: Key, num_in: int, hidden: int) -> Theta:
    """Initial weights, those of the gates r, z, n side by side.

    ``wi`` (num_in, 3 * hidden) is truncated normal of scale 1/sqrt(num_in), cut at two standard
    deviations; ``wh`` (hidden, 3 * hidden) is orthogonal, gate by gate; ``bi`` (3 * hidden,) and
    ``bh`` (hidden,), which only the gate n has, are zero.

    Args:
      key: random key.
      num_in: number of input features.
      hidden: number of units.
    """
    k_in, k_hidden = jax.random.split(key)
    orthogonal = jax.random.orthogonal(k_hidden, hidden, (3,))
    return {
        "wi": jax.random.truncated_normal(k_in, -2.0, 2.0, (num_in, 3 * hidden)) / math.sqrt(num_in),
        "bi": jnp.zeros(3 * hidden),
        "wh": jnp.concatenate(list(orthogonal), axis=1),
        "bh": jnp.zeros(hidden),
    }


def step(weights: Theta, x: jax.Array, hidden: jax.Array) -> jax.Array:
    """One step: the new hidden state, which is also the output.

        r, z = sigmoid(split(x wi + h wh + bi)),   n = tanh(x wi_n + bi_n + r (h wh_n + bh))
        h' = (1 - z) n + z h

    Args:
      weights: weights as ``init`` returns them.
      x: input, (..., num_in).
      hidden: hidden state, (..., hidden).

    Returns:
      (..., hidden).
    """
    from_x = jnp.split(x @ weights["wi"] + weights["bi"], 3, axis=-1)
    from_h = jnp.split(hidden @ weights["wh"], 3, axis=-1)
    r, z = (jax.nn.sigmoid(a + b) for a, b in zip(from_x[:2], from_h[:2], strict=True))
    n = jnp.tanh(from_x[2] + r * (from_h[2] + weights["bh"]))
    return (1.0 - z) * n + z * hidden
