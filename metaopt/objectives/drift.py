"""What drifts have in common: the ratio of two policies, and the drift that is PPO.

A policy is improved by maximizing, over the actions of a rollout,

    mean(r A - drift(log r, A)),   r = new probability / old probability, A = advantage

which for a drift that is never negative, and zero with a derivative of zero at r = 1, never makes the
policy worse (for exact expectations).

Source: Kuba et al., "Mirror learning: a unifying framework of policy optimisation", arXiv:2201.02373.
"""

import jax
import jax.numpy as jnp

LARGEST_LOG_RATIO = 20.0  # beyond it a ratio is clipped: its square still is a float32


def ratio(log_ratio: jax.Array) -> jax.Array:
    """``exp(log_ratio)``, finite whatever the logarithm is."""
    return jnp.exp(jnp.clip(log_ratio, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO))


def clipped(log_ratio: jax.Array, advantage: jax.Array, clip: jax.Array | float) -> jax.Array:
    """PPO as a drift: ``relu((r - clip(r, 1 - clip, 1 + clip)) A)``.

    With it ``r A - drift = min(r A, clip(r) A)``, PPO's objective.
    """
    r = ratio(log_ratio)
    return jax.nn.relu((r - jnp.clip(r, 1.0 - clip, 1.0 + clip)) * advantage)
