"""From the losses of a population to the factors of its perturbations.

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

Shaping = Callable[[jax.Array, jax.Array], jax.Array]


def build(name: str, sigma: float) -> Shaping:
    """Returns ``(losses (num, members), valid (num,)) -> (num,)`` factors c.

    It runs where each device holds ``num`` samples; ranks and standard deviations look
    at all of them, which is one exchange of scalars more.

    Raises:
      UserError: for an unknown name.
    """
    if name not in SHAPINGS:
        raise unknown("shaping", name, SHAPINGS)
    shape = SHAPINGS[name]

    def factors(losses, valid):
        shaped = shape(losses, valid, sigma)
        return (shaped[:, 0] - shaped[:, 1]) / (2 * sigma**2) if losses.shape[1] == 2 else shaped[:, 0] / sigma**2

    return factors


def _none(losses, valid, sigma):
    del valid, sigma
    return losses


def _sign(losses, valid, sigma):
    del valid, sigma
    # Half of it for each member, so that their difference is the sign.
    return 0.5 * jnp.sign(losses - losses[:, ::-1]) if losses.shape[1] == 2 else jnp.sign(losses)


def _rank(losses, valid, sigma):
    del sigma
    everyone = jax.lax.all_gather(jnp.where(valid[:, None], losses, jnp.inf), SAMPLE_AXIS, tiled=True).ravel()
    below = jnp.sum(everyone[:, None, None] < losses, axis=0)
    equal = jnp.sum(everyone[:, None, None] == losses, axis=0)
    return (below + 0.5 * (equal - 1)) / (everyone.size - 1) - 0.5


def _normalized(losses, valid, sigma):
    kept = jnp.where(valid[:, None], losses, 0.0)
    num = losses.shape[1] * jnp.maximum(jax.lax.psum(jnp.sum(valid), SAMPLE_AXIS), 1)
    mean = jax.lax.psum(jnp.sum(kept), SAMPLE_AXIS) / num
    variance = jax.lax.psum(jnp.sum(jnp.where(valid[:, None], (kept - mean) ** 2, 0.0)), SAMPLE_AXIS) / num
    return losses * sigma / jnp.maximum(jnp.sqrt(variance), 1e-12)


SHAPINGS = {"none": _none, "sign": _sign, "rank": _rank, "normalized": _normalized}
