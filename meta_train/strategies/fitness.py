"""From the losses of a population to one number a member.

With the meta-loss L_mc of member m on column c, an episode of one of the inner problems,

    f_m = mean_c n(L_mc),   n over the members of a column:

    none     L
    zscore   (L - mean) / standard deviation
    rank     average ranks, centered, in [-0.5, 0.5]

With zscore and rank no episode and no problem outweighs another, whatever its scale. The
price: where problems disagree, each knows only its own spread, so that a population
much smaller than the distance of their optima rests anywhere between them.

In lockstep an episode is seen a window at a time, and what counts is the sum over
windows. Normalized by itself, a window in which nothing happens would weigh as much
as a decisive one. So f is multiplied by the mean over columns of their standard
deviations: columns that differ by a factor are balanced, windows keep their weight, and
with a single column zscore estimates the same gradient as none.
"""

import jax
import jax.numpy as jnp

NORMALIZATIONS = {  # of losses (members, columns)
    "none": lambda losses: losses,
    "zscore": lambda losses: (losses - jnp.mean(losses, axis=0)) / jnp.maximum(jnp.std(losses, axis=0), 1e-12),
    "rank": lambda losses: (jax.scipy.stats.rankdata(losses, axis=0) - 1) / (len(losses) - 1) - 0.5,
}


def finite(losses: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Losses (members, ...) with the worst of a column in place of what is not finite.

    Also which columns are usable: (...) bool; those without a finite loss are zero.
    """
    valid = jnp.isfinite(losses)
    usable = jnp.any(valid, axis=0)
    worst = jnp.max(jnp.where(valid, losses, -jnp.inf), axis=0)
    return jnp.where(usable, jnp.where(valid, losses, worst), 0.0), usable


def combine(losses: jax.Array, usable: jax.Array, normalize: str, lockstep: bool = False) -> jax.Array:
    """Fitness (members,) from losses (members, ...), the mean over usable columns (...)."""
    losses, usable = losses.reshape(len(losses), -1), usable.ravel()
    fitness = mean(NORMALIZATIONS[normalize](losses), usable)
    return fitness * mean(jnp.std(losses, axis=0), usable) if lockstep and normalize != "none" else fitness


def mean(values: jax.Array, usable: jax.Array) -> jax.Array:
    """Over the last axis, of what is usable."""
    return jnp.sum(values * usable, axis=-1) / jnp.maximum(jnp.sum(usable), 1)
