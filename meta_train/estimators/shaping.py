"""Fitness shaping: from the losses of a population to the factors of its perturbations.

Evolution strategies estimate g = mean_i c_i w_i over samples i with weights w_i. For
antithetic pairs c = (f+ - f-) / (2 sigma^2), with a single member f / sigma^2, where f
is the loss or, where only order or scale should count,

    none        f = L
    sign        c of the sign of L+ - L-
    rank        ranks of all members over all samples, centered, in [-0.5, 0.5]
    normalized  L in units of sigma^-1 standard deviations of all members: 1 / sigma is
                replaced by 1 / std(L)

Sources: ranks, Salimans et al., arXiv:1703.03864; signs, VeLO, arXiv:2211.09760;
standard deviations, Li et al., arXiv:2304.12180.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from meta_train.parallel.devices import SAMPLE_AXIS
from metaopt.errors import unknown

Shaping = Callable[[jax.Array, jax.Array], jax.Array]  # (losses, valid) -> factors, see build


def build(name: str, sigma: float) -> Shaping:
    """Returns ``(losses (num, members), valid (num,)) -> (num,)`` factors c.

    It is called on every device with the ``num`` samples there. Ranks and standard
    deviations are over the samples of all devices, which costs one exchange of scalars.

    Args:
      name: name in SHAPINGS.
      sigma: standard deviation of the perturbations.

    Raises:
      UserError: for an unknown name.
    """
    if name not in SHAPINGS:
        raise unknown("shaping", name, SHAPINGS)
    shape = SHAPINGS[name]

    def factors(losses: jax.Array, valid: jax.Array) -> jax.Array:
        shaped = shape(losses, valid, sigma)
        return (shaped[:, 0] - shaped[:, 1]) / (2 * sigma**2) if losses.shape[1] == 2 else shaped[:, 0] / sigma**2

    return factors


def _none(losses: jax.Array, valid: jax.Array, sigma: float) -> jax.Array:
    del valid, sigma
    return losses


def _sign(losses: jax.Array, valid: jax.Array, sigma: float) -> jax.Array:
    del valid, sigma
    # Half of the sign for each member of a pair, so that their difference is the sign.
    return 0.5 * jnp.sign(losses - losses[:, ::-1]) if losses.shape[1] == 2 else jnp.sign(losses)


def _rank(losses: jax.Array, valid: jax.Array, sigma: float) -> jax.Array:
    del sigma
    all_losses = jax.lax.all_gather(jnp.where(valid[:, None], losses, jnp.inf), SAMPLE_AXIS, tiled=True).ravel()
    below = jnp.sum(all_losses[:, None, None] < losses, axis=0)
    equal = jnp.sum(all_losses[:, None, None] == losses, axis=0)
    return (below + 0.5 * (equal - 1)) / (all_losses.size - 1) - 0.5


def _normalized(losses: jax.Array, valid: jax.Array, sigma: float) -> jax.Array:
    kept = jnp.where(valid[:, None], losses, 0.0)
    num = losses.shape[1] * jnp.maximum(jax.lax.psum(jnp.sum(valid), SAMPLE_AXIS), 1)
    mean = jax.lax.psum(jnp.sum(kept), SAMPLE_AXIS) / num
    variance = jax.lax.psum(jnp.sum(jnp.where(valid[:, None], (kept - mean) ** 2, 0.0)), SAMPLE_AXIS) / num
    return losses * sigma / jnp.maximum(jnp.sqrt(variance), 1e-12)


SHAPINGS = {"none": _none, "sign": _sign, "rank": _rank, "normalized": _normalized}
