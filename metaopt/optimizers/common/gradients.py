"""Gradients made safe for the rules that read them."""

import jax
import jax.numpy as jnp

# Above it an entry is of no use: the mean of squares over a tensor could overflow, or, where a rule
# squares its second moments too, that of fourth powers.
LARGEST_SQUARED, LARGEST_TO_THE_FOURTH = 1e14, 1e7
LARGEST_OF_VELO = 1000.0


def zero_unusable(g: jax.Array, largest: float) -> jax.Array:
    """``g`` with zero in place of NaN, infinity and whatever is larger than ``largest``.

    One bad entry would otherwise stay in the accumulators for ever.
    """
    return jnp.where(jnp.abs(g) <= largest, g, 0.0)


def clip_and_zero_nan(g: jax.Array) -> jax.Array:
    """``g`` clipped element by element to +-LARGEST_OF_VELO, with zero in place of NaN: VeLO's way."""
    return jnp.clip(jnp.where(jnp.isnan(g), 0.0, g), -LARGEST_OF_VELO, LARGEST_OF_VELO)
