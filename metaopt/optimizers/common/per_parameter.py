"""A network on every parameter of a tensor, its channels normalized over the tensor.

What is the same for every parameter stays out of the loop over the tensor: the
normalizer of a channel is one number, time features are folded into the first bias.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from metaopt.core import Theta
from metaopt.nn import mlp
from metaopt.optimizers.common import tiling
from metaopt.optimizers.common.channels import TensorInputs


def apply(
    weights: Theta,
    channels: Callable[[TensorInputs], list[jax.Array]],
    parts: TensorInputs,
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
      channels: makes them, for a piece of the tensor.
      parts: of the tensor.
      output: from the units of the last layer, element by element.
      time: (num_time,) features that all parameters share.
      axes: over which the mean of a channel is taken; all where None.
      eps: of the normalizer.

    Returns:
      An array of the tensor's shape.
    """
    shape = parts.param.shape
    if time is not None:
        num_channels = len(weights["w0"]) - len(time)
        folded = weights["b0"] + time @ weights["w0"][num_channels:]
        weights = weights | {"w0": weights["w0"][:num_channels], "b0": folded}
    scales = normalizers(channels, parts, axes, eps)

    def read(piece: TensorInputs) -> jax.Array:
        normalized = [f * scale for f, scale in zip(channels(piece), scales, strict=True)]
        return output(*mlp.apply(weights, normalized, piece.param.shape))

    return tiling.elementwise(read, parts, shape, axes)


def normalizers(channels: Callable, parts: TensorInputs, axes: Sequence[int] | None, eps: float) -> list[jax.Array]:
    """``rsqrt(eps + mean(f^2))`` of each channel f."""
    squares = lambda piece: [f * f for f in channels(piece)]
    return [jax.lax.rsqrt(eps + m) for m in tiling.means(squares, parts, parts.param.shape, axes)]


def root_mean_square(p: jax.Array) -> jax.Array:
    """``sqrt(1e-9 + mean(p^2))`` of a tensor: the unit of relative steps."""
    return jnp.sqrt(1e-9 + jnp.mean(p * p))
