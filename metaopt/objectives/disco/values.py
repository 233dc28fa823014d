"""Values as distributions over bins, returns with off-policy corrections, and moving means."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

NUM_BINS = 601
LARGEST = 300.0  # the bins are -300, -299, ..., 300, of compressed values
SLOPE = 1e-3  # of ``compress`` far from zero
MOVING_DECAY = 0.99


class MovingMean(NamedTuple):
    """Moments of a stream of batches; without bias they are ``mean / (1 - decay)`` and ``square / (1 - decay)``."""

    mean: jax.Array  # ()
    square: jax.Array  # (), of the squares
    decay: jax.Array  # (), the weight of the zeros that the moments began with


def init_moving_mean() -> MovingMean:
    """The moments of no batch."""
    return MovingMean(*(jnp.full((), x, jnp.float32) for x in (0.0, 0.0, 1.0)))


def update_moving_mean(moments: MovingMean, x: jax.Array) -> MovingMean:
    """The moments after one more batch ``x`` of any shape."""
    new = jnp.mean(x), jnp.mean(x * x), 0.0
    return MovingMean(*(MOVING_DECAY * m + (1.0 - MOVING_DECAY) * n for m, n in zip(moments, new, strict=True)))


def normalize(moments: MovingMean, x: jax.Array) -> jax.Array:
    """``(x - mean) / (sqrt(variance + 1e-12) + 1e-6)``, given the moments of at least one batch."""
    mean, square = moments.mean / (1.0 - moments.decay), moments.square / (1.0 - moments.decay)
    variance = jnp.maximum(square - mean * mean, 0.0)
    return (x - mean) / (jnp.sqrt(variance + 1e-12) + 1e-6)


def compress(x: jax.Array) -> jax.Array:
    """The signed hyperbolic map ``sign(x) (sqrt(|x| + 1) - 1) + SLOPE x``, a square root far from zero."""
    return jnp.sign(x) * (jnp.sqrt(jnp.abs(x) + 1.0) - 1.0) + SLOPE * x


def expand(x: jax.Array) -> jax.Array:
    """The inverse of ``compress``."""
    shifted = jnp.abs(x) + 1.0 + SLOPE
    # (sqrt(1 + 4 SLOPE shifted) - 1) / (2 SLOPE), without the difference of two numbers near 1.
    root = 2.0 * shifted / (jnp.sqrt(1.0 + 4.0 * SLOPE * shifted) + 1.0)
    return jnp.sign(x) * (root * root - 1.0)


def expectation(logits: jax.Array) -> jax.Array:
    """The value that logits over the bins stand for; (..., NUM_BINS) to (...)."""
    return expand(jax.nn.softmax(logits) @ _bins(logits.dtype))


def two_hot(x: jax.Array) -> jax.Array:
    """The distribution over the two nearest bins whose mean is ``compress(x)``; (...) to (..., NUM_BINS)."""
    compressed = jnp.clip(compress(x), -LARGEST, LARGEST)
    return jnp.maximum(1.0 - jnp.abs(compressed[..., None] - _bins(x.dtype)), 0.0)  # bins are 1 apart


def _bins(dtype: DTypeLike) -> jax.Array:
    return jnp.linspace(-LARGEST, LARGEST, NUM_BINS, dtype=dtype)


def corrected_returns(
    rewards: jax.Array,
    discounts: jax.Array,
    traces: jax.Array,
    values: jax.Array,
    q: jax.Array,
    cut: jax.Array,
) -> jax.Array:
    """Returns of the steps taken, as the policy would have them that ``traces`` correct towards.

        G_t = r_t + gamma_t (V_{t+1} + c_{t+1} (G_{t+1} - q_{t+1}))

    where the last step has ``G_t = r_t + gamma_t V_{t+1}`` and one that is cut ``G_t = q_t``.

    Args:
      rewards, discounts: r and gamma, (T, B).
      traces: c of the action taken, (T, B).
      values: V, (T + 1, B).
      q: of the action taken, (T, B).
      cut: (T, B) bool, steps whose successor is unknown.

    Returns:
      (T, B).
    """

    def before(correction: jax.Array, step: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        reward, discount, trace, value, q, cut = step
        returned = jnp.where(cut, q, reward + discount * (value + correction))
        return trace * (returned - q), returned

    steps = (rewards, discounts, traces, values[1:], q, cut)
    _, returns = jax.lax.scan(before, jnp.zeros_like(rewards[0]), steps, reverse=True)
    return returns
