"""The accumulators of all tensors: momentum, second moments, factored second moments.

One accumulator is a tree like the parameters; several decays are a tuple of such
trees, so every leaf has the shape of its parameter, is sharded like it and is updated
in place.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaopt.core import Params, PyTree
from metaopt.optimizers.common.accumulators import Factored, ema, init_factored, update_factored
from metaopt.optimizers.common.trees import by_tensor, each, from_tensors


class Decays(NamedTuple):
    """Decays of the accumulators of each kind; floats or () arrays."""

    momentum: Sequence[jax.Array | float]
    rms: Sequence[jax.Array | float]
    factored: Sequence[jax.Array | float]


class Moments(NamedTuple):
    """The accumulators of all tensors, or of one; an entry for each decay."""

    momentum: tuple[Params, ...]
    rms: tuple[Params, ...]  # second moment, before its square root
    factored: tuple[Factored, ...]


def init_moments(params: Params, decays: Decays) -> Moments:
    """Accumulators of zeros; no two share a buffer, so a state made of them can be donated."""
    return Moments(
        tuple(jax.tree.map(jnp.zeros_like, params) for _ in decays.momentum),
        tuple(jax.tree.map(jnp.zeros_like, params) for _ in decays.rms),
        tuple(_map_factored(init_factored, params) for _ in decays.factored),
    )


def update_moments(decays: Decays, moments: Moments, grads: Params) -> Moments:
    """Averages in the current gradient. Decays of second moments are clipped to [0, 1]."""
    squares = jax.tree.map(lambda g: g * g, grads)

    def average(decay: jax.Array | float, old: Params, new: Params) -> Params:
        return jax.tree.map(functools.partial(ema, decay), old, new)

    def average_factored(decay: jax.Array | float, old: Factored) -> Factored:
        return _map_factored(lambda g, row, col: update_factored(decay, Factored(row, col), g), grads, *old)

    return Moments(
        tuple(average(b, old, grads) for b, old in zip(decays.momentum, moments.momentum, strict=True)),
        tuple(average(jnp.clip(b, 0.0, 1.0), old, squares) for b, old in zip(decays.rms, moments.rms, strict=True)),
        tuple(average_factored(b, old) for b, old in zip(decays.factored, moments.factored, strict=True)),
    )


def _map_factored(f: Callable[..., Factored], *trees: PyTree) -> Factored:
    """``f`` of the tensors in these trees, gathered in two trees like the first."""
    of_tensors = [each(lambda leaves: f(*leaves), leaves) for leaves in by_tensor(trees, trees[0])]
    return from_tensors(of_tensors, Factored(trees[0], trees[0]), trees[0])
