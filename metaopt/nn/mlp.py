"""The tiny network that is applied to every parameter.

Stacking the channels of a tensor on a new last axis and multiplying by a matrix is
bound by memory; here the channels stay apart and "sum_i w_ij * f_i" is left to the
compiler, which fuses it into one loop over the tensor. Row and column channels are
summed before they are broadcast.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from metaopt.core import Key, Theta

UNROLL_UP_TO = 8  # hidden units; wider layers are matrix products


def init(key: Key, sizes: Sequence[int]) -> Theta:
    """Dense layers ``{"w0": (in, out), "b0": (out,), ...}``.

    Weights are normal, cut at two standard deviations of 1/sqrt(in); biases zero.
    """
    weights = {}
    for layer, (num_in, num_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        draw = jax.random.truncated_normal(jax.random.fold_in(key, layer), -2.0, 2.0, (num_in, num_out))
        weights[f"w{layer}"] = draw / math.sqrt(num_in)
        weights[f"b{layer}"] = jnp.zeros(num_out)
    return weights


def apply(weights: Theta, channels: Sequence[jax.Array], shape: tuple[int, ...]) -> list[jax.Array]:
    """Runs the network on every element of a tensor.

    Args:
      weights: as ``init`` returns; ``w0`` has a row for each channel.
      channels: arrays broadcastable to ``shape``.
      shape: of the tensor.

    Returns:
      One array of ``shape`` for each unit of the last layer.
    """
    wide = weights["w0"].shape[1] > UNROLL_UP_TO
    return list((_stacked if wide else _unrolled)(weights, list(channels), shape))


def _stacked(weights: Theta, channels: list[jax.Array], shape: tuple[int, ...]) -> jax.Array:
    """The network as matrix products, feature-major: (num_out, *shape)."""
    rows = jnp.stack([jnp.broadcast_to(f, shape) for f in channels])
    num_layers = len(weights) // 2
    for layer in range(num_layers):
        bias = weights[f"b{layer}"].reshape(-1, *[1] * len(shape))
        rows = jnp.tensordot(weights[f"w{layer}"].T, rows, axes=1) + bias
        rows = jax.nn.relu(rows) if layer < num_layers - 1 else rows
    return rows


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _unrolled(weights: Theta, channels: list[jax.Array], shape: tuple[int, ...]) -> list[jax.Array]:
    """The network as scalar arithmetic that fuses into one loop over the tensor."""
    units, num_layers = channels, len(weights) // 2
    for layer in range(num_layers):
        columns, biases = _scalars(weights[f"w{layer}"].T), _scalars(weights[f"b{layer}"][None])[0]
        units = [_weighted_sum(units, w, b) for w, b in zip(columns, biases, strict=True)]
        units = [jax.nn.relu(u) for u in units] if layer < num_layers - 1 else units
    return [jnp.broadcast_to(u, shape) for u in units]


@_unrolled.defjvp
def _differentiate_stacked(shape, primals, tangents):
    # Each weight's derivative is a sum over the tensor: unrolled, that is hundreds of
    # loops that each recompute the features, and a minute of compilation.
    stacked = lambda weights, channels: list(_stacked(weights, channels, shape))
    return jax.jvp(stacked, primals, tangents)


def _scalars(matrix: jax.Array) -> list[list[jax.Array]]:
    """The entries of a matrix, row by row."""
    entries = [x.reshape(()) for x in jax.lax.split(matrix.ravel(), (1,) * matrix.size)]
    num_columns = matrix.shape[1]
    return [entries[i : i + num_columns] for i in range(0, matrix.size, num_columns)]


def _weighted_sum(arrays: Sequence[jax.Array], weights: Sequence[jax.Array], bias: jax.Array) -> jax.Array:
    """``bias + sum_i weights[i] * arrays[i]``, arrays of one shape added up first."""
    sums: dict[tuple[int, ...], jax.Array] = {}
    for w, f in zip(weights, arrays, strict=True):
        sums[f.shape] = sums[f.shape] + w * f if f.shape in sums else w * f
    return sum(sums.values(), start=bias)
