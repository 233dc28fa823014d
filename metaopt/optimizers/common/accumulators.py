"""Running averages of one tensor's gradient: momentum, second moment, factored second moment.

Their bias toward the start at zero is not corrected, because the published optimizers do not correct it.

Source: google/learned_optimization, learned_optimizers/common.py.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaopt.core import PyTree

FACTORED_EPS = 1e-30  # keeps the factored second moment of a zero gradient positive


class Factored(NamedTuple):
    """Row and column means of a second moment: trees like the parameters, or the arrays of one tensor.

    Below rank 2 there is nothing to factor: ``row`` is the second moment itself, ``col`` a zero that is
    not used.
    """

    row: PyTree  # the tensor's shape with size 1 on its largest axis
    col: PyTree  # the tensor's shape with size 1 on its second largest axis


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


def init_factored(param: jax.Array) -> Factored:
    """Zeros for one tensor."""
    if param.ndim < 2:
        return Factored(jnp.zeros(param.shape, jnp.float32), jnp.zeros((1,) * param.ndim, jnp.float32))
    second, largest = factored_axes(param.shape)

    def averaged_over(axis: int) -> jax.Array:
        shape = list(param.shape)
        shape[axis] = 1
        return jnp.zeros(shape, jnp.float32)

    return Factored(row=averaged_over(largest), col=averaged_over(second))


def update_factored(decay: jax.Array | float, old: Factored, grad: jax.Array) -> Factored:
    """Averages in the squared gradient of one tensor, its means over the largest and the second largest axis."""
    decay = jnp.clip(decay, 0.0, 1.0)
    square = grad * grad + FACTORED_EPS
    if grad.ndim < 2:
        return old._replace(row=ema(decay, old.row, square))
    second, largest = factored_axes(grad.shape)
    return Factored(
        ema(decay, old.row, jnp.mean(square, axis=largest, keepdims=True)),
        ema(decay, old.col, jnp.mean(square, axis=second, keepdims=True)),
    )


def preconditioners(moment: Factored, shape: tuple[int, ...]) -> tuple[jax.Array, ...]:
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
    if len(shape) < 2:
        return (_safe_rsqrt(moment.row + 1e-9),)
    second, _ = factored_axes(shape)
    row_mean = jnp.mean(moment.row, axis=second, keepdims=True)
    return _safe_rsqrt(moment.row / (row_mean + 1e-9)), _safe_rsqrt(moment.col)


def _safe_rsqrt(x: jax.Array) -> jax.Array:
    return jax.lax.rsqrt(jnp.maximum(x, 1e-9))
