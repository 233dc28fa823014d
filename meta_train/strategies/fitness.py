"""From the losses of a population to one fitness for each member.

With the meta-loss L_mc of member m on column c, an episode of one of the inner problems,

    f_m = mean_c n(L_mc),   n over the members of a column:

    none     L
    zscore   (L - mean) / standard deviation
    rank     average ranks, centered, in [-0.5, 0.5]

With zscore and rank all episodes and problems have the same weight, whatever their scale. The
disadvantage: if problems have different optima, each is scaled by its own standard deviation
over the population, so that a population much smaller than the distance between the optima
may settle anywhere between them.

In lockstep an outer step sees one window of an episode, and the objective is the sum over
windows. If every window were normalized on its own, a window in which losses hardly differ
would have as much weight as one in which they differ much. So f is multiplied by the mean over
columns of their standard deviations: columns that differ by a factor are balanced, windows
keep their weight, and with a single column zscore estimates the same gradient as none.
"""

import jax
import jax.numpy as jnp


def _none(losses: jax.Array) -> jax.Array:
    return losses


def _zscore(losses: jax.Array) -> jax.Array:
    return (losses - jnp.mean(losses, axis=0)) / jnp.maximum(jnp.std(losses, axis=0), 1e-12)


def _rank(losses: jax.Array) -> jax.Array:
    return (jax.scipy.stats.rankdata(losses, axis=0) - 1) / (len(losses) - 1) - 0.5


NORMALIZATIONS = {"none": _none, "zscore": _zscore, "rank": _rank}  # functions of (members, columns) losses


def finite(losses: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Replaces losses that are not finite by the largest finite loss of their column.

    Args:
      losses: (members, ...).

    Returns:
      (members, ...) losses, zero in columns without a finite loss; and (...) bool, whether a
      column has a finite loss.
    """
    valid = jnp.isfinite(losses)
    usable = jnp.any(valid, axis=0)
    worst = jnp.max(jnp.where(valid, losses, -jnp.inf), axis=0)
    return jnp.where(usable, jnp.where(valid, losses, worst), 0.0), usable


def combine(losses: jax.Array, usable: jax.Array, normalize: str, lockstep: bool = False) -> jax.Array:
    """The fitness of each member, the mean of its normalized losses over the usable columns.

    Args:
      losses: (members, ...) finite losses.
      usable: (...) bool, whether a column is included.
      normalize: name in NORMALIZATIONS.
      lockstep: whether losses are those of one window of an episode.

    Returns:
      (members,).
    """
    losses, usable = losses.reshape(len(losses), -1), usable.ravel()
    fitness = mean(NORMALIZATIONS[normalize](losses), usable)
    return fitness * mean(jnp.std(losses, axis=0), usable) if lockstep and normalize != "none" else fitness


def mean(values: jax.Array, usable: jax.Array) -> jax.Array:
    """The mean over the last axis of the usable values; zero if there are none."""
    return jnp.sum(values * usable, axis=-1) / jnp.maximum(jnp.sum(usable), 1)
