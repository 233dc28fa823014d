"""Running averages that learned optimizers read: momentum and second moments.

One accumulator is a tree like the parameters; several decays are a tuple of such
trees, so every leaf has the shape of its parameter, shards like it and is updated
in place. None corrects its bias: that is how the published optimizers see them.

Source: google/learned_optimization, learned_optimizers/common.py.
"""

import collections
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metaopt.core import Params, PyTree

FACTORED_EPS = 1e-30  # keeps the factored second moment of a zero gradient positive
STACKED_UP_TO = 2**15  # elements


class Factored(NamedTuple):
    """Row and column means of a second moment, for a tensor of rank >= 2."""

    row: jax.Array  # the tensor's shape with size 1 on its largest axis
    col: jax.Array  # the tensor's shape with size 1 on its second largest axis


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
    for members in groups.values():
        g = f if kinds is None else functools.partial(f, kind=known[members[0]])
        if len(members) == 1:
            results[members[0]] = g(*rows[members[0]])
            continue
        stacked = jax.vmap(g)(*jax.tree.map(lambda *x: jnp.stack(x), *(rows[i] for i in members)))
        results |= {i: jax.tree.map(lambda x, k=k: x[k], stacked) for k, i in enumerate(members)}
    return structure.unflatten([results[i] for i in range(len(rows))])


def factored_axes(shape: tuple[int, ...]) -> tuple[int, int]:
    """Returns the (second largest, largest) axes; of equal sizes the later is larger.

    >>> factored_axes((3, 3, 64, 64))
    (2, 3)
    """
    order = sorted(range(len(shape)), key=lambda axis: shape[axis])  # sorted is stable
    return order[-2], order[-1]


def ema(decay: jax.Array | float, old: jax.Array, new: jax.Array) -> jax.Array:
    """``decay * old + (1 - decay) * new``"""
    return decay * old + (1 - decay) * new


def init_factored(param: jax.Array) -> Factored | jax.Array:
    """Zeros for one tensor: factored if its rank is at least 2, else of its shape."""
    if param.ndim < 2:
        return jnp.zeros(param.shape, jnp.float32)
    second, largest = factored_axes(param.shape)
    shape = lambda axis: tuple(1 if a == axis else size for a, size in enumerate(param.shape))
    return Factored(jnp.zeros(shape(largest), jnp.float32), jnp.zeros(shape(second), jnp.float32))


def update_factored(decay: jax.Array, old: Factored | jax.Array, grad: jax.Array) -> Factored | jax.Array:
    """Averages the squared gradient, or its means over the two largest axes."""
    decay = jnp.clip(decay, 0.0, 1.0)
    square = grad * grad + FACTORED_EPS
    if not isinstance(old, Factored):
        return ema(decay, old, square)
    second, largest = factored_axes(grad.shape)
    return Factored(
        ema(decay, old.row, jnp.mean(square, axis=largest, keepdims=True)),
        ema(decay, old.col, jnp.mean(square, axis=second, keepdims=True)),
    )


def preconditioners(moment: Factored | jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """Arrays whose product is about the inverse root of the second moment.

    With d0 the largest and d1 the second largest axis,

        R = rsqrt(row / mean_d1(row)),  C = rsqrt(col)    (rank >= 2)
        D = rsqrt(diagonal)                               (rank < 2)

    Args:
      moment: what ``update_factored`` returned.
      shape: of the tensor.

    Returns:
      (R, C) or (D,), each broadcastable to ``shape``. Multiply one after the other:
      the row and the column never meet in a full-sized array of their own.
    """
    safe_rsqrt = lambda x: jax.lax.rsqrt(jnp.maximum(x, 1e-9))
    if not isinstance(moment, Factored):
        return (safe_rsqrt(moment + 1e-9),)
    second, _ = factored_axes(shape)
    row_mean = jnp.mean(moment.row, axis=second, keepdims=True)
    return safe_rsqrt(moment.row / (row_mean + 1e-9)), safe_rsqrt(moment.col)
