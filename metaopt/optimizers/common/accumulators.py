"""Running averages of one tensor's gradient: momentum, second moment, factored second moment.

Their bias toward the start at zero is not corrected, because the published optimizers do not correct it.

Source: google/learned_optimization, learned_optimizers/common.py.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

FACTORED_EPS = 1e-30  # keeps the factored second moment of a zero gradient positive


class Factored(NamedTuple):
    """Row and column means of a second moment, for a tensor of rank >= 2."""

    row: jax.Array  # the tensor's shape with size 1 on its largest axis
    col: jax.Array  # the tensor's shape with size 1 on its second largest axis


def factored_axes(shape: tuple[int, ...]) -> tuple[int, int]:
    """Returns the (second largest, largest) axes; of axes of equal size, the later counts as larger.

    >>> factored_axes((3, 3, 64, 64))
    (2, 3)
    """
    order = sorted(range(len(shape)), key=lambda axis: shape[axis])  # sorted is stable
    return order[-2], order[-1]


def ema(decay: jax.Array | float, old: jax.Array, new: jax.Array) -> jax.Array:
    """Exponential moving average: ``decay * old + (1 - decay) * new``."""
    return decay * old + (1 - decay) * new


def stop_gradient_up_to(x: jax.Array, threshold: float = 0.0) -> jax.Array:
    """``x``, with a derivative of zero wherever ``x <= threshold``.

    The derivative of a square root is infinite at zero, and infinity times the zero of a parameter
    that never had a gradient is NaN.
    """
    return jnp.where(x > threshold, x, jax.lax.stop_gradient(x))


def init_factored(param: jax.Array) -> Factored | jax.Array:
    """Zeros for one tensor: row and column means if its rank is at least 2, else its own shape."""
    if param.ndim < 2:
        return jnp.zeros(param.shape, jnp.float32)
    second, largest = factored_axes(param.shape)

    def averaged_over(axis: int) -> jax.Array:
        shape = list(param.shape)
        shape[axis] = 1
        return jnp.zeros(shape, jnp.float32)

    return Factored(row=averaged_over(largest), col=averaged_over(second))


def update_factored(decay: jax.Array | float, old: Factored | jax.Array, grad: jax.Array) -> Factored | jax.Array:
    """Averages in the squared gradient; for ``Factored``, its means over the largest and the second largest axis."""
    decay = jnp.clip(decay, 0.0, 1.0)
    square = grad * grad + FACTORED_EPS
    if not isinstance(old, Factored):
        return ema(decay, old, square)
    second, largest = factored_axes(grad.shape)
    return Factored(
        ema(decay, old.row, jnp.mean(square, axis=largest, keepdims=True)),
        ema(decay, old.col, jnp.mean(square, axis=second, keepdims=True)),
    )


def preconditioners(moment: Factored | jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """Arrays whose product is about the inverse square root of the second moment.

    With d1 the second largest axis,

        R = rsqrt(row / mean_d1(row)),  C = rsqrt(col)    (rank >= 2)
        D = rsqrt(diagonal)                               (rank < 2)

    Args:
      moment: second moment as ``update_factored`` returns it.
      shape: shape of the tensor.

    Returns:
      (R, C) or (D,), each broadcastable to ``shape``. Multiply by one after the other: R * C would
      be a further array of the tensor's size.
    """
    if not isinstance(moment, Factored):
        return (_safe_rsqrt(moment + 1e-9),)
    second, _ = factored_axes(shape)
    row_mean = jnp.mean(moment.row, axis=second, keepdims=True)
    return _safe_rsqrt(moment.row / (row_mean + 1e-9)), _safe_rsqrt(moment.col)


def _safe_rsqrt(x: jax.Array) -> jax.Array:
    return jax.lax.rsqrt(jnp.maximum(x, 1e-9))
