"""The accumulators of all tensors: momentum, second moments, factored second moments.

One accumulator is a tree like the parameters; several decays are a tuple of such
trees, so every leaf has the shape of its parameter, is sharded like it and is updated
in place.
"""

import collections
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metaopt.core import Params, PyTree
from metaopt.optimizers.common.accumulators import Factored, ema, init_factored, update_factored
from metaopt.optimizers.common.trees import by_tensor

MAX_STACKED_TENSOR, MAX_STACK = 2**15, 2**19  # elements of a tensor that is stacked, and of a whole stack


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


def map_tensors(
    f: Callable[..., Any], moments: Moments, params: Params, *trees: PyTree, kinds: PyTree | None = None
) -> PyTree:
    """The tree of ``f(p, *others, moments of that tensor)`` for each tensor p of ``params``.

    Small tensors of one shape are stacked and mapped together: a transformer has a hundred
    vectors, and a loop for each takes longer to compile than to run.

    Args:
      f: function of one tensor, of its leaves in ``trees`` and of its accumulators.
      moments: accumulators of all tensors.
      params: the tensors.
      trees: trees like ``params``, whose leaves are further arguments of ``f``.
      kinds: tree like ``params`` of hashable Python values that ``f`` needs while it is traced,
        where it gets them as the keyword ``kind``; only tensors of one kind are stacked.

    Returns:
      A tree like ``params`` of the results.
    """
    structure = jax.tree.structure(params)
    columns = [structure.flatten_up_to(tree) for tree in (params, *trees)]
    arguments = list(zip(*columns, by_tensor(moments, params), strict=True))
    kind = [None] * len(arguments) if kinds is None else structure.flatten_up_to(kinds)
    alike = collections.defaultdict(list)  # indices of tensors that can be stacked
    for i, (p, *_) in enumerate(arguments):
        alike[(p.shape, kind[i]) if p.size <= MAX_STACKED_TENSOR else i].append(i)
    results: dict[int, Any] = {}
    for indices in (stack for group in alike.values() for stack in _stacks(group, arguments[group[0]][0].size)):
        first = indices[0]
        of_kind = f if kinds is None else functools.partial(f, kind=kind[first])
        if len(indices) == 1:
            results[first] = of_kind(*arguments[first])
            continue
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(arguments[i] for i in indices))
        outputs = jax.vmap(of_kind)(*stacked)
        for place, i in enumerate(indices):
            results[i] = jax.tree.map(operator.itemgetter(place), outputs)
    return structure.unflatten([results[i] for i in range(len(arguments))])


def _map_factored(f: Callable[..., Factored], *trees: PyTree) -> Factored:
    """``f`` of the tensors in these trees, gathered in two trees like the first."""
    structure = jax.tree.structure(trees[0])
    of_tensors = [f(*leaves) for leaves in zip(*map(structure.flatten_up_to, trees), strict=True)]
    return Factored(*(structure.unflatten([getattr(x, name) for x in of_tensors]) for name in Factored._fields))


def _stacks(indices: list[int], size: int) -> list[list[int]]:
    """Splits tensors of ``size`` elements each into stacks of at most MAX_STACK elements."""
    num = max(1, MAX_STACK // max(1, size))
    return [indices[i : i + num] for i in range(0, len(indices), num)]
