"""A network on every parameter of a tensor, which may be too large for its features.

The channels of a large tensor are many times its size. They are made, normalised and read
piece by piece, along an axis that is not the largest one: that one is what fully sharded
training splits over devices, and a piece should be spread as the tensor is.

What is the same for every parameter stays out of the loop over the tensor: the
normaliser of a channel is one number, time features are folded into the first bias.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from metaopt.core import Theta
from metaopt.optimizers import network
from metaopt.optimizers.channels import Parts

# Elements of a piece. On a CPU its channels should stay in the cache, which halves the time
# of a matrix of half a million; elsewhere a piece should fill the machine.
LARGEST, LARGEST_ON_CPU = 2**22, 2**16

Channels = Callable[[Parts], list[jax.Array]]


def apply(
    weights: Theta,
    channels: Channels,
    parts: Parts,
    output: Callable[..., jax.Array],
    time: jax.Array | None = None,
    *,
    axes: Sequence[int] | None = None,
    eps: float = 1e-5,
) -> jax.Array:
    """``output(*network(f / sqrt(eps + mean(f^2)), time))`` for every parameter of a tensor.

    Args:
      weights: of ``network``; ``w0`` has a row for each channel f, then one for each
        time feature.
      channels: makes the channels of a piece.
      parts: of the tensor.
      output: from the units of the last layer, element by element.
      time: (num_time,) features that all parameters share.
      axes: over which the mean of a channel is taken; all where None.
      eps: of the normaliser.

    Returns:
      An array of the tensor's shape.
    """
    shape = parts.param.shape
    axes = tuple(range(len(shape))) if axes is None else tuple(a % len(shape) for a in axes)
    axis, length = _pieces(shape, axes)
    if time is not None:
        num_channels = len(weights["w0"]) - len(time)
        folded = weights["b0"] + time @ weights["w0"][num_channels:]
        weights = weights | {"w0": weights["w0"][:num_channels], "b0": folded}

    def squares(piece: Parts) -> list[jax.Array]:
        share = piece.param.shape[axis] / shape[axis] if shape else 1.0
        return [share * m for m in mean_squares(channels(piece), axes)]

    def read(piece: Parts, normalisers: list[jax.Array]) -> jax.Array:
        normalised = [f * n for f, n in zip(channels(piece), normalisers, strict=True)]
        return output(*network.apply(weights, normalised, piece.param.shape))

    if not shape or length == shape[axis]:
        return read(parts, [jax.lax.rsqrt(eps + m) for m in squares(parts)])

    num, rest = divmod(shape[axis], length)
    cut = lambda start, size: jax.tree.map(
        lambda x: x if x.shape[axis] == 1 else jax.lax.dynamic_slice_in_dim(x, start, size, axis), parts
    )
    add = lambda a, b: [x + y for x, y in zip(a, b, strict=True)]
    start = [jnp.zeros(m.shape) for m in jax.eval_shape(squares, parts)]
    total = jax.lax.fori_loop(0, num, lambda i, total: add(total, squares(cut(i * length, length))), start)
    total = add(total, squares(cut(num * length, rest))) if rest else total
    normalisers = [jax.lax.rsqrt(eps + m) for m in total]
    write = lambda out, start, size: jax.lax.dynamic_update_slice_in_dim(
        out, read(cut(start, size), normalisers), start, axis
    )
    out = jax.lax.fori_loop(0, num, lambda i, out: write(out, i * length, length), jnp.zeros(shape))
    return write(out, num * length, rest) if rest else out


def mean_squares(channels: list[jax.Array], axes: tuple[int, ...]) -> list[jax.Array]:
    """Broadcasting repeats every element equally often: the mean of a row is the mean over the tensor."""
    return [jnp.mean(f * f, axis=axes, keepdims=True) for f in channels]


def _pieces(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, int]:
    """The axis that a tensor is cut along, one of ``axes``, and the length of a piece."""
    if not shape:
        return 0, 1
    limit, whole = LARGEST_ON_CPU if jax.default_backend() == "cpu" else LARGEST, math.prod(shape)
    by_size = sorted(axes, key=lambda a: (shape[a], a), reverse=True)
    fine_enough = [a for a in by_size[1:] if whole <= limit * shape[a]]
    axis = (fine_enough or by_size)[0]
    return axis, shape[axis] if whole <= limit else max(1, limit * shape[axis] // whole)
