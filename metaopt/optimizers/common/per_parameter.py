"""A network applied to every parameter of a tensor, its channels normalized over the tensor.

What is equal for all parameters stays out of the loop over the tensor: the normalizer of a
channel is one number, and the time features are folded into the bias of the first layer.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from metaopt.core import Theta
from metaopt.nn import mlp
from metaopt.optimizers.common import tiling
from metaopt.optimizers.common.channels import TensorInputs

Channels = Callable[[TensorInputs], list[jax.Array]]


def apply(
    weights: Theta,
    channels: Channels,
    inputs: TensorInputs,
    output: Callable[..., jax.Array],
    time: jax.Array | None = None,
    *,
    axes: Sequence[int] | None = None,
    eps: float = 1e-5,
) -> jax.Array:
    """``output(*network(f / sqrt(eps + mean(f^2)), time))`` for every parameter of a tensor.

    Args:
      weights: weights of the network; ``w0`` has a row for each channel f, then one for each
        time feature.
      channels: function from the inputs of a tensor, or of a tile of it, to its channels.
      inputs: inputs of the tensor.
      output: function of the units of the last layer, element by element.
      time: (num_time,) features that all parameters share.
      axes: axes that the mean square of a channel is taken over; None for all.
      eps: constant under the square root of the normalizer.

    Returns:
      An array of the tensor's shape.
    """
    shape = inputs.param.shape
    if time is not None:
        num_channels = len(weights["w0"]) - len(time)
        folded = weights["b0"] + time @ weights["w0"][num_channels:]
        weights = weights | {"w0": weights["w0"][:num_channels], "b0": folded}
    scales = normalizers(channels, inputs, axes, eps)

    def apply_to_tile(tile: TensorInputs) -> jax.Array:
        normalized = [f * scale for f, scale in zip(channels(tile), scales, strict=True)]
        return output(*mlp.apply(weights, normalized, tile.param.shape))

    return tiling.elementwise(apply_to_tile, inputs, shape, axes)


def normalizers(channels: Channels, inputs: TensorInputs, axes: Sequence[int] | None, eps: float) -> list[jax.Array]:
    """``rsqrt(eps + mean(f^2))`` of each channel f."""

    def squares(tile: TensorInputs) -> list[jax.Array]:
        return [f * f for f in channels(tile)]

    return [jax.lax.rsqrt(eps + m) for m in tiling.means(squares, inputs, inputs.param.shape, axes)]


def scaled_step(scale: jax.Array | float, exp_multiplier: float) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns the function ``(d, a) -> -scale * d * exp(exp_multiplier * a)`` of a direction and a log step size."""

    def step(direction: jax.Array, log_size: jax.Array) -> jax.Array:
        return -scale * direction * jnp.exp(exp_multiplier * log_size)

    return step


def root_mean_square(p: jax.Array) -> jax.Array:
    """``sqrt(1e-9 + mean(p^2))`` of a tensor, the unit of relative steps."""
    return jnp.sqrt(1e-9 + jnp.mean(p * p))
