"""The statistics of tensors that VeLO's LSTM reads.

Source: google/learned_optimization, research/general_lopt/hyper_v2.py.
"""

import itertools
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.core import Params
from metaopt.optimizers.common import grouping, packing, tiling, trees
from metaopt.optimizers.common.moments import Moments
from metaopt.optimizers.common.trees import Stack, alike, bare, by_tensor, each, split
from metaopt.optimizers.common.velo_network import DECAYS

NUM_RANKS = 5  # ranks 0 to 4, one-hot
# Mean of the second moment, rank, and variances of each momentum and of the second moment about it.
NUM_STATISTICS = 1 + NUM_RANKS + 2 * len(DECAYS.momentum)

Arrays = tuple[jax.Array, tuple[jax.Array, ...], jax.Array]  # parameters, momenta, second moment


def of_tensors(params: Params, moments: Moments) -> jax.Array:
    """The (tensors, 12) statistics of tensors, from their accumulators before the current gradient.

    In units of the parameters' root mean square k, with v the second moment and m the
    momenta: log mean(k v), the rank one-hot, log var(k m), log mean((k v - mean(k m))^2).
    The last one, and k instead of k^2 before v, are mistakes that the published weights rely on.
    """
    arrays = by_tensor((params, moments.momentum, *moments.rms), params)
    tensors = trees.tensors(params)
    groups = grouping.choose(tensors, [True] * len(tensors))
    alone = [*groups.alone, *(i for stack in groups.stacks for i in stack)]
    means = [_means_of_pack([arrays[i] for i in pack]) for pack in groups.packs]
    means += [_means_alone(arrays[i]) for i in alone]
    rows = split(np.arange(sum(x.count for x in tensors)), tensors)
    place = np.argsort(np.concatenate([np.ravel(bare(rows[i])) for i in [*itertools.chain(*groups.packs), *alone]]))
    first, second = (jnp.concatenate(parts)[place] for parts in zip(*means, strict=True))
    square, mean_rms = first[:, :1], first[:, 1:2]
    unit = jax.lax.rsqrt(jnp.maximum(1e-9, square))
    ranks = np.array([sum(size > 1 for size in x.shape) for x in tensors for _ in range(x.count)])
    columns = [_clipped_log(unit * mean_rms), jax.nn.one_hot(ranks, NUM_RANKS), _clipped_log(unit**2 * second)]
    return jnp.concatenate(columns, axis=1)


def _means_alone(arrays: Arrays | Stack) -> tuple[jax.Array, jax.Array]:
    """The means of a tensor, or of the tensors of a stack, see ``_means_of_tensor``."""
    if not isinstance(arrays, Stack):
        return _means_of_tensor(arrays)
    return jax.tree.map(lambda x: x[:, 0], jax.lax.map(_means_of_tensor, arrays.of_tensors))


def _means_of_tensor(arrays: Arrays) -> tuple[jax.Array, jax.Array]:
    """Means of a tensor: (1, 5) of p^2, v and each m; (1, 6) squared distances of m, and of v, from the mean of m."""
    shape = arrays[0].shape
    first = tiling.means(_first_powers, arrays, shape)
    mean_momentum = first[2:]
    second = tiling.means(lambda tile: _squared_distances(tile, mean_momentum), arrays, shape)
    return jnp.stack(first).reshape(1, -1), jnp.stack(second).reshape(1, -1)


def _means_of_pack(arrays: Sequence[Arrays | Stack]) -> tuple[jax.Array, jax.Array]:
    """The same of several tensors, (tensors, 5) and (tensors, 6)."""
    places = packing.Packing([alike(each(operator.itemgetter(0), x)) for x in arrays])
    rows: Arrays = jax.tree.map(lambda *of_tensors: places.pack(of_tensors), *map(bare, arrays))
    first = places.means(_first_powers(rows))
    of_rows = places.spread(first[:, 2:])
    return first, places.means(_squared_distances(rows, [of_rows[:, i, None] for i in range(of_rows.shape[1])]))


def _first_powers(arrays: Arrays) -> list[jax.Array]:
    p, momentum, rms = arrays
    return [p * p, rms, *momentum]


def _squared_distances(arrays: Arrays, mean_momentum: Sequence[jax.Array]) -> list[jax.Array]:
    _, momentum, rms = arrays
    from_own_mean = [(m - mean) ** 2 for m, mean in zip(momentum, mean_momentum, strict=True)]
    return [*from_own_mean, *[(rms - mean) ** 2 for mean in mean_momentum]]


def _clipped_log(x: jax.Array) -> jax.Array:
    return 0.5 * jnp.clip(jnp.log(1e-8 + jnp.abs(10.0 * x)), -5.0, 5.0)
