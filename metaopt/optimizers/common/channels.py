"""Input channels of per-parameter networks, before they are normalized.

A channel is one input feature of all elements of a tensor: an array broadcastable to the tensor's
shape. Row and column means of the factored second moment keep size 1 on the axis they average
over. All channels are computed from accumulators that the current gradient has entered.

Source: google/learned_optimization, learned_optimizers/adafac_mlp_lopt.py and
research/general_lopt/hyper_v2.py.
"""

import functools
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import rsqrt

from metaopt.core import Params
from metaopt.optimizers.common import roots
from metaopt.optimizers.common.accumulators import preconditioners
from metaopt.optimizers.common.moments import Moments
from metaopt.optimizers.common.packing import Packing
from metaopt.optimizers.common.trees import by_tensor, each

NUM_SMALL_FC_CHANNELS, NUM_VELO_CHANNELS = 28, 30


class TensorInputs(NamedTuple):
    """Arrays of one tensor from which its channels are computed element by element; tuples have an entry per decay."""

    param: jax.Array
    grad: jax.Array
    momentum: tuple[jax.Array, ...]
    rms: tuple[jax.Array, ...]  # second moment, before its square root
    row_means: tuple[jax.Array, ...]  # row means of a second moment, or all of it for rank < 2
    col_means: tuple[jax.Array, ...]  # column means of a second moment, or all of it for rank < 2
    preconditioners: tuple[tuple[jax.Array, ...], ...]  # factors, see ``accumulators.preconditioners``
    is_vector: jax.Array | None = None  # for rows of a pack, whether the rank of their tensor is below 2


def all_inputs(params: Params, grads: Params, moments: Moments) -> list[Any]:
    """The TensorInputs of each leaf, or a Stack of them, in the order of ``jax.tree.leaves``."""
    return [each(lambda x: tensor_inputs(*x), x) for x in by_tensor((params, grads, moments), params)]


def tensor_inputs(p: jax.Array, g: jax.Array, moments: Moments) -> TensorInputs:
    """Gathers the inputs of one tensor.

    Only this step needs the whole tensor, because a preconditioner divides by a mean over all rows;
    the channels themselves can be computed tile by tile.
    """
    factored = moments.factored
    return TensorInputs(
        p,
        g,
        moments.momentum,
        moments.rms,
        tuple(f.row for f in factored),
        tuple(f.col if p.ndim >= 2 else f.row for f in factored),
        tuple(preconditioners(f, p.shape) for f in factored),
    )


def pack_inputs(places: Packing, inputs: Sequence[TensorInputs]) -> TensorInputs:
    """The inputs of a pack of tensors, (rows, WIDTH) each; for a stack, arrays with its leading axis."""
    one = jnp.ones(())
    alike = [x._replace(preconditioners=tuple((*f, one)[:2] for f in x.preconditioners)) for x in inputs]
    rows = jax.tree.map(lambda *arrays: places.pack(arrays), *alike)
    is_vector = jnp.array([rank < 2 for rank in places.ranks])
    return rows._replace(is_vector=places.spread(is_vector)[:, None])


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
        *[_scaled(x.grad, factors) for factors in x.preconditioners],
        *_factored_channels(x),
        *_preconditioned_momentum(x, 1e-6),
    ]


def velo(x: TensorInputs, eps: float = 1e-6) -> list[jax.Array]:
    """The 30 channels of VeLO, Celo and Celo2.

    Args:
      x: inputs of one tensor, or of a tile of it.
      eps: constant added to the second moment before its square root is taken.

    Returns:
      The channels. The last 15 come from the factored second moment.
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
        *[_scaled(x.grad, factors) for factors in x.preconditioners],
        *[x.grad * s for s in inverse_root],
        *_factored_channels(x),
        *_preconditioned_momentum(x, 0.0),
    ]


def _scaled(x: jax.Array, factors: tuple[jax.Array, ...]) -> jax.Array:
    """``x`` multiplied by one factor after the other."""
    return functools.reduce(operator.mul, factors, x)


def _factored_channels(x: TensorInputs) -> list[jax.Array]:
    row_roots, col_roots = ([rsqrt(mean + 1e-8) for mean in means] for means in (x.row_means, x.col_means))
    return [*x.row_means, *x.col_means, *row_roots, *col_roots]


def _preconditioned_momentum(x: TensorInputs, eps: float) -> list[jax.Array]:
    of_matrix = [_scaled(m, factors) for m, factors in zip(x.momentum, x.preconditioners, strict=True)]
    if x.is_vector is None and x.param.ndim >= 2:
        return of_matrix
    # For rank < 2 the references use another formula than for the gradient, and two values of eps.
    # Without eps only FACTORED_EPS keeps the second moment of a zero gradient positive.
    of_vector = [
        m * roots.rsqrt(second + eps, smallest=1e-24) for m, second in zip(x.momentum, x.row_means, strict=True)
    ]
    if x.is_vector is None:
        return of_vector
    return [jnp.where(x.is_vector, v, m) for v, m in zip(of_vector, of_matrix, strict=True)]
