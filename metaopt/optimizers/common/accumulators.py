"""Running averages that learned optimizers read, of one tensor.

None corrects its bias: that is how the published optimizers see them.

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
    """Returns the (second largest, largest) axes; of equal sizes the later is larger.

    >>> factored_axes((3, 3, 64, 64))
    (2, 3)
    """
    order = sorted(range(len(shape)), key=lambda axis: shape[axis])  # sorted is stable
    return order[-2], order[-1]


def ema(decay: jax.Array | float, old: jax.Array, new: jax.Array) -> jax.Array:
    """``decay * old + (1 - decay) * new``"""
    return decay * old + (1 - decay) * new


def differentiable(x: jax.Array, above: float = 0.0) -> jax.Array:
    """``x``, but a constant to derivatives where it is ``above`` at most.

    The derivative of a root is infinite at zero, and infinity times the zero of a
    parameter that never had a gradient is not a number.
    """
    return jnp.where(x > above, x, jax.lax.stop_gradient(x))


def init_factored(param: jax.Array) -> Factored | jax.Array:
    """Zeros for one tensor: factored if its rank is at least 2, else of its shape."""
    if param.ndim < 2:
        return jnp.zeros(param.shape, jnp.float32)
    second, largest = factored_axes(param.shape)
    shape = lambda axis: tuple(1 if a == axis else size for a, size in enumerate(param.shape))
    return Factored(jnp.zeros(shape(largest), jnp.float32), jnp.zeros(shape(second), jnp.float32))


def update_factored(decay: jax.Array, old: Factored | jax.Array, grad: jax.Array) -> Factored | jax.Array:
    """Averages the squared gradient, or its means over the two largest axes."""
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
    """Arrays whose product is about the inverse root of the second moment.

    With d0 the largest and d1 the second largest axis,

        R = rsqrt(row / mean_d1(row)),  C = rsqrt(col)    (rank >= 2)
        D = rsqrt(diagonal)                               (rank < 2)

    Args:
      moment: what ``update_factored`` returned.
      shape: of the tensor.

    Returns:
      (R, C) or (D,), each broadcastable to ``shape``. Multiply one after the other:
      the row and the column never meet in a full-sized array of their own.
    """
    safe_rsqrt = lambda x: jax.lax.rsqrt(jnp.maximum(x, 1e-9))
    if not isinstance(moment, Factored):
        return (safe_rsqrt(moment + 1e-9),)
    second, _ = factored_axes(shape)
    row_mean = jnp.mean(moment.row, axis=second, keepdims=True)
    return safe_rsqrt(moment.row / (row_mean + 1e-9)), safe_rsqrt(moment.col)
