"""Which tensors are computed together, so that what is done for each is compiled fewer times.

A function of a tensor is compiled once for each shape, a network in about half a second. Three ways to do
it for many tensors, by what they cost at every step:

- vectors, and matrices where there are many small ones, become rows of one array, see ``packing``: once
  for all shapes; a row is padded, and its inputs are written out;
- tensors of one shape become a stack, and a loop takes one after the other: once for each shape; the
  stack is a copy;
- any other is alone.

Tensors of which there are many of one shape come as stacks of the state's own, see ``stacking``: they are
packed, or a loop takes one after the other, without a copy.
"""

import collections
import math
from collections.abc import Sequence
from typing import NamedTuple

from metaopt.optimizers.common.packing import Alike, num_rows

MAX_PACKED, MAX_STACKED = 2**12, 2**16  # most elements of a matrix that is packed, and of a tensor that is stacked
FEWEST_MATRICES = 5  # fewer are faster alone
MAX_GROUP = 2**19  # most elements of a pack or a stack: the inputs of a network take 80 bytes for each


class Groups(NamedTuple):
    """Indices of tensors, or of stacks that a state holds already, see ``stacking``."""

    packs: list[list[int]]  # with numbers of rows that do not fall
    stacks: list[list[int]]  # of one shape, two at least
    alone: list[int]


def choose(tensors: Sequence[Alike], whole: Sequence[bool]) -> Groups:
    """The groups of tensors.

    Args:
      tensors: the tensors, and stacks of them.
      whole: whether what is done for a tensor may take it as a vector of its elements, as a pack does.
    """
    sizes = [math.prod(x.full_shape) for x in tensors]
    small = [i for i, x in enumerate(tensors) if math.prod(x.shape) <= MAX_PACKED and whole[i]]
    vectors = [i for i in small if len(tensors[i].shape) < 2]
    matrices = [i for i in small if len(tensors[i].shape) >= 2]
    packs: list[list[int]] = []
    for indices, fewest in ((vectors, 2), (matrices, FEWEST_MATRICES)):
        if sum(tensors[i].count for i in indices) >= fewest:
            packs += _cut(sorted(indices, key=lambda i: num_rows(tensors[i].shape)), sizes)
    packed = {i for pack in packs for i in pack}
    of_shape = collections.defaultdict(list)
    for i, x in enumerate(tensors):
        if i not in packed and x.num is None and sizes[i] <= MAX_STACKED:
            of_shape[x.shape].append(i)
    stacks = [stack for indices in of_shape.values() for stack in _cut(indices, sizes) if len(stack) > 1]
    grouped = packed | {i for stack in stacks for i in stack}
    return Groups(packs, stacks, [i for i in range(len(tensors)) if i not in grouped])


def _cut(indices: list[int], sizes: Sequence[int]) -> list[list[int]]:
    """Cuts a list of tensors into groups of at most MAX_GROUP elements."""
    groups, total = [], MAX_GROUP
    for i in indices:
        if total + sizes[i] > MAX_GROUP:
            groups.append([])
            total = 0
        groups[-1].append(i)
        total += sizes[i]
    return groups
