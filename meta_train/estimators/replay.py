"""Episodes begun again from where training went wrong: a failure-aware replay buffer.

Every sample keeps the states before its last bad windows and, when an episode is over,
mostly goes on from one of them, for a freshly drawn number of steps more: horizons
grow beyond the longest one, and failures are seen often.

A window is bad where the largest value so far of the cumulated rise of the loss,
S_t = max(0, S_{t-1} + l_t - l_{t-1}), grew in it. The last window of an episode is
kept as well.

On the small recipe digits-quick it did not help (``python -m tests.bench.ablations``,
three meta-training seeds): validation loss after 500 steps, its longest horizon, 0.062 to
0.166 with two slots against 0.024 to 0.039 without; after 2,000, both can diverge.

Source: ELO (failure-aware replay of meta-training states).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaopt.core import Episode

LARGEST = 1e30  # a loss that any other is below


class Buffer(NamedTuple):
    """Of one sample."""

    episodes: Episode  # leading axis (slots,), as they were before the window
    count: jax.Array  # () int32, windows kept so far; the oldest is replaced
    last: jax.Array  # (members,) loss of the step before
    rise: jax.Array  # (members,) S
    highest: jax.Array  # (members,) largest S of the episode


def init(episode: Episode, slots: int, members: int) -> Buffer:
    """An empty buffer for episodes of these shapes."""
    episodes = jax.tree.map(lambda x: jnp.broadcast_to(x, (slots, *x.shape)), episode)
    return _new_episode(Buffer(episodes, jnp.int32(0), *[jnp.zeros(members)] * 3), jnp.bool(True))


def begin(buffer: Buffer, fresh: Episode, key: jax.Array, fresh_share: float) -> Episode:
    """The next episode: ``fresh`` with that probability, else a kept one, longer by its horizon."""
    k_whether, k_slot = jax.random.split(key)
    num_kept = jnp.minimum(buffer.count, buffer.episodes.step.shape[0])
    again = (jax.random.uniform(k_whether) >= fresh_share) & (num_kept > 0)
    slot = jax.random.randint(k_slot, (), 0, jnp.maximum(num_kept, 1))
    kept = jax.tree.map(lambda x: x[slot], buffer.episodes)
    kept = kept._replace(key=fresh.key, horizon=kept.step + fresh.horizon)  # other data than the first time
    return jax.tree.map(lambda k, f: jnp.where(again, k, f), kept, fresh)


def push(buffer: Buffer, before: Episode, losses: jax.Array, is_first: jax.Array, is_last: jax.Array) -> Buffer:
    """Follows one window and keeps the state before it where it went wrong.

    Args:
      buffer: of the sample.
      before: the episode before the window.
      losses: (members, window) of its steps.
      is_first, is_last: () bool, whether an episode began or ended with it.
    """
    buffer = _new_episode(buffer, is_first)

    losses = jnp.clip(losses, -LARGEST, LARGEST)  # infinity less infinity would be no number

    def follow(carry, loss):
        last, rise, highest = carry
        rise = jnp.maximum(0.0, rise + loss - last)
        return (loss, rise, jnp.maximum(highest, rise)), None

    (last, rise, highest), _ = jax.lax.scan(follow, (buffer.last, buffer.rise, buffer.highest), losses.T)
    keep = (jnp.mean(highest) > jnp.mean(buffer.highest)) | is_last
    slot = buffer.count % buffer.episodes.step.shape[0]
    store = lambda slots, x: slots.at[slot].set(jnp.where(keep, x, slots[slot]))
    return Buffer(jax.tree.map(store, buffer.episodes, before), buffer.count + keep, last, rise, highest)


def _new_episode(buffer: Buffer, is_first: jax.Array) -> Buffer:
    start = lambda value, x: jnp.where(is_first, value, x)
    # The first step of an episode is never a rise.
    return buffer._replace(
        last=start(LARGEST, buffer.last), rise=start(0.0, buffer.rise), highest=start(0.0, buffer.highest)
    )
