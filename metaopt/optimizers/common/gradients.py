"""Gradients made safe for the networks that read them."""

import jax
import jax.numpy as jnp

LARGEST_GRADIENT = 1000.0


def clip_and_zero_nan(g: jax.Array) -> jax.Array:
    """``g`` clipped element by element to +-LARGEST_GRADIENT, with zero in place of NaN."""
    return jnp.clip(jnp.where(jnp.isnan(g), 0.0, g), -LARGEST_GRADIENT, LARGEST_GRADIENT)
