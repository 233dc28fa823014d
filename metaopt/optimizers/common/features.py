"""Input features that all parameters share: the time step, the fraction of training done, the progress of the loss."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

TIME_SCALES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000)
FRACTIONS = (0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)
NUM_LOSS_SCALES = 10
LARGEST_DECAY = 1.0 - 2.0**-24  # below one in float32: a mean over more than 2^24 steps would never begin
NUM_PROGRESS_FEATURES = len(FRACTIONS) + NUM_LOSS_SCALES - 1


def time_features(step: jax.Array) -> jax.Array:
    """``tanh(step / tau - 1)`` for eleven time scales tau; (11,) float32."""
    return jnp.tanh(step.astype(jnp.float32) / jnp.array(TIME_SCALES, jnp.float32) - 1.0)


def fraction_features(step: jax.Array, num_steps: jax.Array | int) -> jax.Array:
    """``tanh(10 (step / num_steps - s))`` for nine fractions s; (9,) float32."""
    return jnp.tanh(10.0 * (step / jnp.asarray(num_steps, jnp.float32) - jnp.array(FRACTIONS, jnp.float32)))


class Losses(NamedTuple):
    """Running means of the training loss on ten time scales, and the lowest value of each so far."""

    step: jax.Array  # () int32, number of losses averaged
    means: jax.Array  # (10,), biased toward their start at zero
    lowest: jax.Array  # (10,), lowest value of each mean, its bias corrected


def init_losses() -> Losses:
    """The running means before the first loss."""
    return Losses(
        jnp.zeros((), jnp.int32), jnp.zeros(NUM_LOSS_SCALES), jnp.full(NUM_LOSS_SCALES, 999999999999.0, jnp.float32)
    )


def loss_features(losses: Losses, loss: jax.Array, longest: jax.Array | int) -> tuple[jax.Array, Losses]:
    """Features that say whether the loss falls: each running mean against the next slower one.

        c_i = exp(-1 / tau_i),  tau from 10 to ``longest`` in equal ratios
        mean <- c mean + (1 - c) min(loss, 2 |largest v|),   v = mean / (1 - c^n)
        f_i = clip((v_i - lowest_i) / max(1e-8, v_{i+1} - lowest_i) - 1, -1, 1)

    In the cap, v comes from the means before this loss but n counts this loss, as in the reference.
    A loss that is not finite is skipped; in the reference one of them would stay in the means for ever.

    Args:
      losses: running means before this loss.
      loss: () training loss of the current step.
      longest: longest time scale in steps, usually the length of training.

    Returns:
      (9,) features, zero for the first two losses, and the running means with this loss.
    """
    c = jnp.exp(-1.0 / jnp.logspace(1.0, jnp.log10(jnp.asarray(longest, jnp.float32)), NUM_LOSS_SCALES))
    c = jnp.minimum(c, LARGEST_DECAY)
    num = losses.step + 1
    largest = jnp.where(num == 1, loss, jnp.max(losses.means / (1.0 - c**num)))
    means = c * losses.means + (1.0 - c) * jnp.minimum(2.0 * jnp.abs(largest), loss)
    averaged = Losses(num, means, jnp.minimum(losses.lowest, means / (1.0 - c**num)))
    losses = jax.tree.map(lambda new, old: jnp.where(jnp.isfinite(loss), new, old), averaged, losses)
    v = losses.means / (1.0 - c ** jnp.maximum(losses.step, 1))
    relative = (v[:-1] - losses.lowest[:-1]) / jnp.maximum(1e-8, v[1:] - losses.lowest[:-1])
    return jnp.where(losses.step <= 2, 0.0, jnp.clip(relative - 1.0, -1.0, 1.0)), losses


def progress_features(
    step: jax.Array, num_steps: jax.Array | int, losses: Losses, loss: jax.Array, longest: jax.Array | int
) -> tuple[jax.Array, Losses]:
    """``fraction_features`` followed by ``loss_features``, (18,), and the running means with this loss."""
    falling, losses = loss_features(losses, loss, longest)
    return jnp.concatenate([fraction_features(step, num_steps), falling]), losses
