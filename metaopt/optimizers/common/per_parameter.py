"""A network applied to every parameter of every tensor, its channels normalized over the tensor.

What is equal for all parameters stays out of the loop over the tensor: the normalizer of a
channel is one number, and the time features are folded into the bias of the first layer.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaopt.core import PyTree, Theta
from metaopt.optimizers.common import grouping, packing, tiling
from metaopt.optimizers.common.channels import TensorInputs, pack_inputs
from metaopt.optimizers.common.trees import Stack, alike, bare, each, join

Channels = Callable[[TensorInputs], list[jax.Array]]
Own = PyTree  # arrays of a tensor that all its parameters share, e.g. a step size
Network = Callable[[Own, list[jax.Array], tuple[int, ...]], jax.Array]  # of normalized channels and their shape


class _Rule(NamedTuple):
    """What is done with every parameter, see ``apply``."""

    network: Network
    channels: Channels
    axes: Sequence[int] | None
    eps: float

    def of_normalized(self, inputs: TensorInputs, scales: Sequence[jax.Array] | jax.Array, own: Own) -> jax.Array:
        """The network's result for a tensor, or for a part of it, given the normalizers of its channels."""
        normalized = [f * scale for f, scale in zip(self.channels(inputs), scales, strict=True)]
        return self.network(own, normalized, inputs.param.shape)


def apply(
    network: Network,
    channels: Channels,
    inputs: Sequence[TensorInputs | Stack],
    own: Sequence[Own | Stack] | None = None,
    *,
    axes: Sequence[int] | None = None,
    eps: float = 1e-5,
) -> list[jax.Array | Stack]:
    """``network(own, f / sqrt(eps + mean(f^2)))`` for every parameter of every tensor.

    Small tensors are computed together, see ``grouping``, and large ones tile by tile.

    Args:
      network: function of what the tensor has for its own, of normalized channels, and of the shape of
        the result; it works element by element.
      channels: function from the inputs of a tensor, or of a part of it, to its channels f.
      inputs: inputs of each tensor; a Stack of them for the tensors of a stack.
      own: what each tensor has for its own, () by default.
      axes: axes that the mean square of a channel is taken over, the last ones; None for all.
      eps: constant under the square root of the normalizer.

    Returns:
      An array of its shape for each tensor, a Stack of them for a stack.
    """
    own = [each(_nothing, x) for x in inputs] if own is None else own
    tensors = [alike(each(lambda tensor: tensor.param, x)) for x in inputs]
    # Where axes are fewer than a tensor has, it is a stack of things to normalize and no vector.
    whole = [axes is None or len(x.shape) <= len(axes) for x in tensors]
    groups = grouping.choose(tensors, whole)
    rule = _Rule(network, channels, axes, eps)
    results = {i: _apply_alone(rule, inputs[i], own[i]) for i in groups.alone}
    for apply_to, of_kind in ((_apply_to_pack, groups.packs), (_apply_in_turn, groups.stacks)):
        for indices in of_kind:
            of_group = apply_to(rule, [inputs[i] for i in indices], [own[i] for i in indices])
            results.update(zip(indices, of_group, strict=True))
    return [results[i] for i in range(len(inputs))]


def fold_time(weights: Theta, time: jax.Array) -> Theta:
    """Weights of the same network without its last inputs, features (num_time,) that all parameters share."""
    num_channels = len(weights["w0"]) - len(time)
    folded = weights["b0"] + time @ weights["w0"][num_channels:]
    return weights | {"w0": weights["w0"][:num_channels], "b0": folded}


def step(direction: jax.Array, log_size: jax.Array, scale: jax.Array | float, exp_multiplier: float) -> jax.Array:
    """``-scale * direction * exp(exp_multiplier * log_size)``."""
    return -scale * direction * jnp.exp(exp_multiplier * log_size)


def root_mean_square(p: jax.Array) -> jax.Array:
    """``sqrt(1e-9 + mean(p^2))`` of a tensor, the unit of relative steps."""
    return jnp.sqrt(1e-9 + jnp.mean(p * p))


def _apply_to_tensor(rule: _Rule, inputs: TensorInputs, own: Own) -> jax.Array:
    scales = normalizers(rule.channels, inputs, rule.axes, rule.eps)

    def apply_to_tile(tile: TensorInputs) -> jax.Array:
        return rule.of_normalized(tile, scales, own)

    return tiling.elementwise(apply_to_tile, inputs, inputs.param.shape, rule.axes)


def _apply_alone(rule: _Rule, inputs: TensorInputs | Stack, own: Own | Stack) -> jax.Array | Stack:
    """One tensor, or the tensors of a stack one after the other."""
    if not isinstance(inputs, Stack):
        return _apply_to_tensor(rule, inputs, own)

    def apply_to_next(tensor: tuple[TensorInputs, Own]) -> jax.Array:
        return _apply_to_tensor(rule, *tensor)

    return Stack(jax.lax.map(apply_to_next, (inputs.of_tensors, own.of_tensors)))


def _apply_in_turn(rule: _Rule, inputs: Sequence[TensorInputs | Stack], own: Sequence[Own | Stack]) -> list[jax.Array]:
    """Tensors of one shape, one after the other."""
    return list(bare(_apply_alone(rule, Stack(join(inputs)), Stack(join(own)))))


def _apply_to_pack(
    rule: _Rule, inputs: Sequence[TensorInputs | Stack], own: Sequence[Own | Stack]
) -> list[jax.Array | Stack]:
    """All rows of all tensors at once; each tensor is normalized as a whole."""
    places = packing.Packing([alike(each(lambda tensor: tensor.param, x)) for x in inputs])
    rows = pack_inputs(places, [bare(x) for x in inputs])
    scales = jax.lax.rsqrt(rule.eps + places.means(_squares_of(rule.channels)(rows)))

    def apply_to_row(row: tuple[TensorInputs, jax.Array, Own]) -> jax.Array:
        return rule.of_normalized(*row)

    of_tensors = places.unpack(packing.map_rows(apply_to_row, (rows, *places.spread((scales, join(own))))))
    return [Stack(u) if isinstance(x, Stack) else u for u, x in zip(of_tensors, inputs, strict=True)]


def _nothing(inputs: TensorInputs) -> Own:
    del inputs
    return ()


def normalizers(channels: Channels, inputs: TensorInputs, axes: Sequence[int] | None, eps: float) -> list[jax.Array]:
    """``1 / sqrt(eps + mean(f^2))`` of each channel f of a tensor."""
    means = tiling.means(_squares_of(channels), inputs, inputs.param.shape, axes)
    return [jax.lax.rsqrt(eps + mean) for mean in means]


def _squares_of(channels: Channels) -> Channels:
    def squares(x: TensorInputs) -> list[jax.Array]:
        return [f * f for f in channels(x)]

    return squares
