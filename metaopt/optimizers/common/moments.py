"""The accumulators of all tensors: momenta, second moments, factored second moments.

One accumulator is a tree like the parameters; several decays are a tuple of such
trees, so every leaf has the shape of its parameter, shards like it and is updated
in place.
"""

import collections
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metaopt.core import Params, PyTree
from metaopt.optimizers.common.accumulators import ema, init_factored, update_factored

STACKED_UP_TO, STACKED_TOGETHER = 2**15, 2**19  # elements of a tensor, and of a stack


class Decays(NamedTuple):
    """Of each accumulator; floats or () arrays."""

    momentum: Sequence[jax.Array | float]
    rms: Sequence[jax.Array | float]
    factored: Sequence[jax.Array | float]


class Moments(NamedTuple):
    """The accumulators of all tensors, or of one; an entry for each decay."""

    momentum: tuple[Params, ...]
    rms: tuple[Params, ...]  # second moment, not rooted
    factored: tuple[PyTree, ...]  # Factored, or an array where the rank is below 2


def init_moments(params: Params, decays: Decays) -> Moments:
    """Zeros, no buffer shared."""
    zeros = lambda _: jax.tree.map(jnp.zeros_like, params)
    return Moments(
        tuple(map(zeros, decays.momentum)),
        tuple(map(zeros, decays.rms)),
        tuple(jax.tree.map(init_factored, params) for _ in decays.factored),
    )


def update_moments(decays: Decays, moments: Moments, grads: Params) -> Moments:
    """Averages in the current gradient. Decays of second moments are clipped to [0, 1]."""
    average = lambda b, old, new: jax.tree.map(lambda o, n: ema(b, o, n), old, new)
    squares = jax.tree.map(lambda g: g * g, grads)
    each = lambda f, decays, old: tuple(f(b, o) for b, o in zip(decays, old, strict=True))
    factored = lambda b, old: jax.tree.map(lambda g, f: update_factored(b, f, g), grads, old)
    return Moments(
        each(lambda b, old: average(b, old, grads), decays.momentum, moments.momentum),
        each(lambda b, old: average(jnp.clip(b, 0.0, 1.0), old, squares), decays.rms, moments.rms),
        each(factored, decays.factored, moments.factored),
    )


def map_tensors(
    f: Callable[..., Any], moments: Moments, params: Params, *trees: PyTree, kinds: PyTree | None = None
) -> PyTree:
    """The tree of ``f(p, *others, moments of that tensor)`` for each tensor p of ``params``.

    Small tensors of one shape are stacked and mapped together: a transformer has a hundred
    vectors, and a loop for each takes longer to compile than to run.

    Args:
      f: of one tensor.
      moments, params, trees: what it is given, leaf by leaf.
      kinds: a tree of what must be known while tracing; ``f`` is given it as ``kind``.
    """
    structure = jax.tree.structure(params)
    columns = map(structure.flatten_up_to, (params, *trees))
    of_tensor = lambda part: zip(*map(structure.flatten_up_to, part), strict=True) if part else itertools.repeat(())
    rows = list(zip(*columns, map(Moments, *map(of_tensor, moments)), strict=False))
    known = structure.flatten_up_to(kinds) if kinds is not None else [None] * len(rows)
    groups = collections.defaultdict(list)
    for i, (p, *_) in enumerate(rows):
        groups[(p.shape, known[i]) if p.size <= STACKED_UP_TO else i].append(i)
    results: dict[int, Any] = {}
    for members in (stack for group in groups.values() for stack in _stacks(group, rows[group[0]][0].size)):
        g = f if kinds is None else functools.partial(f, kind=known[members[0]])
        if len(members) == 1:
            results[members[0]] = g(*rows[members[0]])
            continue
        stacked = jax.vmap(g)(*jax.tree.map(lambda *x: jnp.stack(x), *(rows[i] for i in members)))
        results |= {i: jax.tree.map(lambda x, k=k: x[k], stacked) for k, i in enumerate(members)}
    return structure.unflatten([results[i] for i in range(len(rows))])


def _stacks(members: list[int], size: int) -> list[list[int]]:
    """Tensors of one shape in groups that together have at most STACKED_TOGETHER elements."""
    num = max(1, STACKED_TOGETHER // max(1, size))
    return [members[i : i + num] for i in range(0, len(members), num)]
