"""Roots whose derivatives are finite at zero, of every order and in both modes.

The derivative of a square root is infinite at zero, and infinity times the zero of a tensor of zeros, or
of a parameter that never had a gradient, is NaN. Values are those of the roots themselves.
"""

import jax
import jax.numpy as jnp


def sqrt(x: jax.Array) -> jax.Array:
    """The square root of ``x >= 0``; where x is zero its derivative is zero."""
    positive = x > 0.0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def rsqrt(x: jax.Array, smallest: float) -> jax.Array:
    """``1 / sqrt(x)``, with a derivative of zero where ``x <= smallest``."""
    above = x > smallest
    constant = jax.lax.stop_gradient(jax.lax.rsqrt(x))
    return jnp.where(above, jax.lax.rsqrt(jnp.where(above, x, 1.0)), constant)


def norm(x: jax.Array, axis: tuple[int, ...]) -> jax.Array:
    """The Euclidean norm over axes that keep size 1; its derivative is zero at zero."""
    return sqrt(jnp.sum(x * x, axis=axis, keepdims=True))
