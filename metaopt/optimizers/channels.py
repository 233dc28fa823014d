"""What a per-parameter network reads: the channels of one tensor, before they are normalised.

Each channel is an array broadcastable to the tensor; row and column statistics keep
size 1 on the axis they are averaged over. All come from accumulators that the current
gradient has entered.

Source: google/learned_optimization, learned_optimizers/adafac_mlp_lopt.py and
research/general_lopt/hyper_v2.py.
"""

import functools
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.lax import rsqrt

from metaopt.optimizers.accumulators import Factored, Moments, preconditioners

SMALL_FC, VELO = 28, 30  # how many


def small_fc(p: jax.Array, g: jax.Array, moments: Moments) -> list[jax.Array]:
    """The 28 channels of small_fc and muLO."""
    inverse_root = [rsqrt(r + 1e-6) for r in moments.rms]
    return [
        g,
        p,
        *moments.momentum,
        *moments.rms,
        *[m * s for m in moments.momentum for s in inverse_root],
        *inverse_root,
        *preconditioned([g] * len(moments.factored), moments),
        *factored(moments),
        *_preconditioned_momentum(moments, g.ndim, 1e-6),
    ]


def velo(p: jax.Array, g: jax.Array, moments: Moments, eps: float = 1e-6) -> list[jax.Array]:
    """The 30 channels of VeLO and Celo; ``eps`` is what the second moment has added under its root.

    The last 15 are about the factored second moment.
    """
    inverse_root = [rsqrt(r + eps) for r in moments.rms]
    return [
        g,
        jnp.clip(g, -0.1, 0.1),
        p,
        *moments.momentum,
        *moments.rms,
        *[m * s for m in moments.momentum for s in inverse_root],
        *inverse_root,
        *preconditioned([g] * len(moments.factored), moments),
        *[g * s for s in inverse_root],
        *factored(moments),
        *_preconditioned_momentum(moments, g.ndim, 0.0),
    ]


def preconditioned(arrays: Sequence[jax.Array], moments: Moments) -> list[jax.Array]:
    """Each array divided by the root of its factored second moment."""
    factors = [preconditioners(f, x.shape) for x, f in zip(arrays, moments.factored, strict=True)]
    return [functools.reduce(operator.mul, f, x) for x, f in zip(arrays, factors, strict=True)]


def factored(moments: Moments) -> list[jax.Array]:
    """Rows, columns and their inverse roots; a vector's second moment stands for both."""
    rows = [f.row if isinstance(f, Factored) else f for f in moments.factored]
    cols = [f.col if isinstance(f, Factored) else f for f in moments.factored]
    return [*rows, *cols, *[rsqrt(r + 1e-8) for r in rows], *[rsqrt(c + 1e-8) for c in cols]]


def _preconditioned_momentum(moments: Moments, rank: int, eps: float) -> list[jax.Array]:
    """For a vector another formula than ``preconditioned``, with an ``eps`` of its own."""
    if rank >= 2:
        return preconditioned(moments.momentum, moments)
    return [m * rsqrt(f + eps) for m, f in zip(moments.momentum, moments.factored, strict=True)]
