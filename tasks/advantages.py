"""Advantages of actions: how much more than expected a rollout returned."""

import jax
import jax.numpy as jnp


def generalized(
    rewards: jax.Array,
    values: jax.Array,
    values_after: jax.Array,
    terminated: jax.Array,
    done: jax.Array,
    discount: float,
    decay: float,
) -> jax.Array:
    """Generalized advantage estimates.

        delta_t = r_t + discount V'_t - V_t,    V'_t = 0 where an episode ended for good
        A_t = delta_t + discount decay A_{t+1},   A_{t+1} = 0 where it ended at all

    An episode that a time limit ended was worth going on with: V'_t is then the value of its last
    observation, and not of the first one of the next episode.

    Args:
      rewards: (T, ...).
      values: (T, ...), of the observations before each step.
      values_after: (T, ...), of the observations after each step, where done of the episode's last.
      terminated: (T, ...) bool, the step ended an episode for good.
      done: (T, ...) bool, the step ended an episode, for good or by a limit of time.
      discount: of rewards, called gamma.
      decay: of estimates over more steps, called lambda.

    Returns:
      (T, ...) advantages; plus ``values`` they are targets of the value function.

    Source: Schulman et al., arXiv:1506.02438.
    """
    deltas = rewards + discount * jnp.where(terminated, 0.0, values_after) - values
    factors = discount * decay * (1.0 - done)

    def accumulate(later: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        delta, factor = step
        advantage = delta + factor * later
        return advantage, advantage

    _, advantages = jax.lax.scan(accumulate, jnp.zeros_like(deltas[0]), (deltas, factors), reverse=True)
    return advantages
