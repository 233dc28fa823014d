"""Features that all parameters share: time, and the progress of the loss."""

import jax
import jax.numpy as jnp

TIME_SCALES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000)
FRACTIONS = (0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)


def time_features(step: jax.Array) -> jax.Array:
    """``tanh(step / tau - 1)`` for eleven time scales tau; (11,) float32."""
    return jnp.tanh(step.astype(jnp.float32) / jnp.array(TIME_SCALES, jnp.float32) - 1.0)


def fraction_features(step: jax.Array, num_steps: jax.Array | int) -> jax.Array:
    """``tanh(10 (step / num_steps - s))`` for nine fractions s; (9,) float32."""
    return jnp.tanh(10.0 * (step / jnp.asarray(num_steps, jnp.float32) - jnp.array(FRACTIONS, jnp.float32)))
