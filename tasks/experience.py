"""What agents went through: the steps of a rollout, and what is learned from them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from tasks import advantages


class Experience(NamedTuple):
    """T steps in B environments."""

    observations: jax.Array  # (T, B, num_features)
    last_observations: jax.Array  # (T, B, num_features) after the step, where done of the episode that ended
    actions: jax.Array  # (T, B) int32 or (T, B, num_coordinates)
    log_probs: jax.Array  # (T, B) of the actions
    rewards: jax.Array  # (T, B)
    terminated: jax.Array  # (T, B) bool: the step ended an episode for good
    done: jax.Array  # (T, B) bool: the step ended an episode, for good or by a limit of time
    returns: jax.Array  # (T, B) of the episode so far, that step included


class Batch(NamedTuple):
    """Examples of what to do, (num, ...)."""

    observations: jax.Array
    actions: jax.Array
    log_probs: jax.Array  # of the actions, when they were drawn
    values: jax.Array  # of the critic, when the rollout ended
    advantages: jax.Array
    targets: jax.Array  # of the critic


class Unfinished(NamedTuple):
    """The episodes that B environments are in."""

    returns: jax.Array  # (B,) so far
    lengths: jax.Array  # (B,) int32, steps so far


def assess(
    experience: Experience,
    values: jax.Array,
    values_at_end: jax.Array,
    discount: float,
    decay: float,
) -> Batch:
    """The steps with their advantages, and the critic's targets, as one batch.

    Args:
      experience: T steps in B environments.
      values: (T + 1, B) of the critic, of the observations before each step and after the last.
      values_at_end: (T, B), of the last observations.
      discount: of rewards.
      decay: of estimates over more steps, see ``advantages.generalized``.
    """
    before, after = values[:-1], jnp.where(experience.done, values_at_end, values[1:])
    estimates = advantages.generalized(
        experience.rewards, before, after, experience.terminated, experience.done, discount, decay
    )
    batch = Batch(
        experience.observations, experience.actions, experience.log_probs, before, estimates, estimates + before
    )
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)


def mean_return(experience: Experience, unfinished: Unfinished, before: jax.Array, time_limit: int) -> jax.Array:
    """The mean return of the episodes that ended in these steps.

    Where none has, it is what it was ``before``; and where none ever has, which is a ``before`` of NaN,
    what the unfinished ones would return if they went on as they did to the limit of time. An agent
    whose every step costs gains nothing by not finishing.
    """
    num = jnp.sum(experience.done)
    ended = jnp.sum(experience.returns * experience.done) / jnp.maximum(num, 1)
    at_limit = jnp.mean(unfinished.returns / jnp.maximum(unfinished.lengths, 1)) * time_limit
    return jnp.where(num > 0, ended, jnp.where(jnp.isnan(before), at_limit, before))
