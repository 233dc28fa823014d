"""What a per-parameter network reads: the channels of one tensor, before they are normalized.

Each channel is an array broadcastable to the tensor; what belongs to a row or a column
keeps size 1 on the axis it is averaged over. All come from accumulators that the
current gradient has entered.

Source: google/learned_optimization, learned_optimizers/adafac_mlp_lopt.py and
research/general_lopt/hyper_v2.py.
"""

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import rsqrt

from metaopt.optimizers.common.accumulators import Factored, differentiable, preconditioners
from metaopt.optimizers.common.moments import Moments

NUM_SMALL_FC_CHANNELS, NUM_VELO_CHANNELS = 28, 30


class TensorInputs(NamedTuple):
    """What the channels of one tensor are made of, from element to element."""

    param: jax.Array
    grad: jax.Array
    momentum: tuple[jax.Array, ...]
    rms: tuple[jax.Array, ...]
    rows: tuple[jax.Array, ...]  # of the factored second moment; of a vector all of it
    cols: tuple[jax.Array, ...]
    factors: tuple[tuple[jax.Array, ...], ...]  # their product divides by its root


def tensor_inputs(p: jax.Array, g: jax.Array, moments: Moments) -> TensorInputs:
    """The only step that needs the whole tensor: a row is divided by the mean of all rows."""
    factored = moments.factored
    return TensorInputs(
        p,
        g,
        moments.momentum,
        moments.rms,
        tuple(f.row if isinstance(f, Factored) else f for f in factored),
        tuple(f.col if isinstance(f, Factored) else f for f in factored),
        tuple(preconditioners(f, p.shape) for f in factored),
    )


def small_fc(x: TensorInputs) -> list[jax.Array]:
    """The 28 channels of small_fc and muLO."""
    inverse_root = [rsqrt(r + 1e-6) for r in x.rms]
    return [
        x.grad,
        x.param,
        *x.momentum,
        *x.rms,
        *[m * s for m in x.momentum for s in inverse_root],
        *inverse_root,
        *[_product(x.grad, f) for f in x.factors],
        *_factored(x),
        *_preconditioned_momentum(x, 1e-6),
    ]


def velo(x: TensorInputs, eps: float = 1e-6) -> list[jax.Array]:
    """The 30 channels of VeLO, Celo and Celo2; ``eps`` is added under the root of the second moment.

    The last 15 are about the factored second moment.
    """
    inverse_root = [rsqrt(r + eps) for r in x.rms]
    return [
        x.grad,
        jnp.clip(x.grad, -0.1, 0.1),
        x.param,
        *x.momentum,
        *x.rms,
        *[m * s for m in x.momentum for s in inverse_root],
        *inverse_root,
        *[_product(x.grad, f) for f in x.factors],
        *[x.grad * s for s in inverse_root],
        *_factored(x),
        *_preconditioned_momentum(x, 0.0),
    ]


def _product(x: jax.Array, factors: tuple[jax.Array, ...]) -> jax.Array:
    return functools.reduce(operator.mul, factors, x)


def _factored(x: TensorInputs) -> list[jax.Array]:
    return [*x.rows, *x.cols, *[rsqrt(r + 1e-8) for r in x.rows], *[rsqrt(c + 1e-8) for c in x.cols]]


def _preconditioned_momentum(x: TensorInputs, eps: float) -> list[jax.Array]:
    if x.param.ndim >= 2:
        return [_product(m, f) for m, f in zip(x.momentum, x.factors, strict=True)]
    # For vectors the references have another formula than for the gradient, and two values of eps.
    # Without eps only FACTORED_EPS keeps the second moment of a zero gradient positive.
    root = lambda second: rsqrt(differentiable(second + eps, above=1e-24))
    return [m * root(second) for m, second in zip(x.momentum, x.rows, strict=True)]
