"""A multi-layer perceptron that is applied to every parameter of a tensor.

Stacking the channels of a tensor on a new axis and multiplying by a matrix is limited by memory
bandwidth; here the channels stay separate arrays, and the compiler fuses "sum_i w_ij * f_i" into one
loop over the tensor. Channels of size 1 on an axis are summed before they are broadcast.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from metaopt.core import Key, Theta

MAX_UNROLLED_WIDTH = 8  # units of the first hidden layer; wider networks use matrix products


def init(key: Key, sizes: Sequence[int]) -> Theta:
    """Initial weights ``{"w0": (in, out), "b0": (out,), ...}``.

    Weights are truncated normal of scale 1/sqrt(in), cut at two standard deviations; biases are zero.

    Args:
      key: random key.
      sizes: number of input channels, then of units in each layer.
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
      weights: weights as ``init`` returns them; ``w0`` has a row for each channel.
      channels: arrays broadcastable to ``shape``.
      shape: shape of the tensor.

    Returns:
      One array of ``shape`` for each unit of the last layer.
    """
    wide = weights["w0"].shape[1] > MAX_UNROLLED_WIDTH
    return list((_stacked if wide else _unrolled)(weights, list(channels), shape))


def _stacked(weights: Theta, channels: list[jax.Array], shape: tuple[int, ...]) -> jax.Array:
    """The network as matrix products, units on the first axis: (num_out, *shape)."""
    units = jnp.stack([jnp.broadcast_to(f, shape) for f in channels])
    num_layers = len(weights) // 2
    for layer in range(num_layers):
        bias = weights[f"b{layer}"].reshape(-1, *[1] * len(shape))
        units = jnp.tensordot(weights[f"w{layer}"].T, units, axes=1) + bias
        units = jax.nn.relu(units) if layer < num_layers - 1 else units
    return units


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
def _differentiate_stacked(shape: tuple[int, ...], primals: tuple, tangents: tuple) -> tuple[list, list]:
    # The derivative of each weight is a sum over the tensor: unrolled, that is hundreds of
    # loops that each recompute the channels, and a minute of compilation.
    def stacked(weights: Theta, channels: list[jax.Array]) -> list[jax.Array]:
        return list(_stacked(weights, channels, shape))

    return jax.jvp(stacked, primals, tangents)


def _scalars(matrix: jax.Array) -> list[list[jax.Array]]:
    """The entries of a matrix, row by row."""
    entries = [x.reshape(()) for x in jax.lax.split(matrix.ravel(), (1,) * matrix.size)]
    num_columns = matrix.shape[1]
    return [entries[i : i + num_columns] for i in range(0, matrix.size, num_columns)]


def _weighted_sum(arrays: Sequence[jax.Array], weights: Sequence[jax.Array], bias: jax.Array) -> jax.Array:
    """``bias + sum_i weights[i] * arrays[i]``; arrays of one shape are summed before they are broadcast."""
    sums: dict[tuple[int, ...], jax.Array] = {}
    for w, f in zip(weights, arrays, strict=True):
        sums[f.shape] = sums[f.shape] + w * f if f.shape in sums else w * f
    return sum(sums.values(), start=bias)
