"""Image data sets as one table on the device, from which batches are drawn with a random key."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tasks import data

NUM_CLASSES = 10
NUM_EVALUATED = 1000  # number of examples of a split that a task's ``measure`` evaluates


class Subset(NamedTuple):
    """Consecutive examples of a split, whose last example is followed by its first; their order is random."""

    first: jax.Array  # () int32, position of the first example in the split
    count: jax.Array  # () int32, number of examples


class ImageTable(NamedTuple):
    """The examples of several data sets with the same resolution.

    Batches are gathered with indices drawn on the device: nothing is copied from the host. The
    index of a data set is an array, so it can differ between the tasks of one vmap.
    """

    pixels: jax.Array  # (num_rows, side * side) uint8
    labels: jax.Array  # (num_rows,) int32
    starts: jax.Array  # (num_sets, 3) int32, first row of the splits train, valid, test
    sizes: jax.Array  # (num_sets, 3) int32, number of rows of the splits
    mean: jax.Array  # (num_sets,) mean of the training pixels
    std: jax.Array  # (num_sets,) standard deviation of the training pixels

    def batch(
        self, dataset: jax.Array | int, split: str, key: jax.Array, num: int, subset: Subset | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Draws a batch with replacement.

        Args:
          dataset: index of the data set.
          split: "train", "valid" or "test".
          key: random key.
          num: number of examples.
          subset: examples to draw from; None is the whole split.

        Returns:
          (num, pixels) float32 standardized inputs and (num,) int32 labels.
        """
        first, count = subset or self.whole(dataset, split)
        return self._rows(dataset, split, first + jax.random.randint(key, (num,), 0, count))

    def evenly_spaced(
        self, dataset: jax.Array | int, split: str, num: int, subset: Subset | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """The same ``num`` examples in every call, evenly spaced over the split.

        If the split has fewer examples, all of them are repeated about equally often. Args and
        Returns as in ``batch``.
        """
        first, count = subset or self.whole(dataset, split)
        return self._rows(dataset, split, first + (jnp.arange(num) / num * count).astype(jnp.int32))

    def whole(self, dataset: jax.Array | int, split: str) -> Subset:
        """The whole split as a subset."""
        return Subset(jnp.zeros((), jnp.int32), self.sizes[dataset, data.SPLITS.index(split)])

    def draw_subset(self, dataset: jax.Array | int, split: str, key: jax.Array, smallest: int) -> Subset:
        """A random subset, whose size is log-uniform between ``smallest`` and the size of the split.

        A split that has at most ``smallest`` examples is the subset itself.
        """
        k_first, k_count = jax.random.split(key)
        size = self.whole(dataset, split).count
        count = smallest * ((size + 1) / smallest) ** jax.random.uniform(k_count)
        return Subset(jax.random.randint(k_first, (), 0, size), jnp.minimum(count.astype(jnp.int32), size))

    def _rows(self, dataset: jax.Array | int, split: str, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        s = data.SPLITS.index(split)
        rows = self.starts[dataset, s] + positions % self.sizes[dataset, s]
        inputs = (self.pixels[rows].astype(jnp.float32) - self.mean[dataset]) / self.std[dataset]
        return inputs, self.labels[rows]


@functools.cache
def build(names: tuple[str, ...], side: int) -> ImageTable:
    """Loads data sets onto the device; there is only one copy in each process.

    Args:
      names: names of the data sets, see ``tasks.data``.
      side: images are averaged down to side x side pixels.

    Raises:
      UserError: if a data set is unknown or missing.
    """
    sets = [data.load(name) for name in names]
    with jax.ensure_compile_time_eval():  # because the first call may be inside a traced function
        return _assemble(sets, side)


def _assemble(sets: list[data.Dataset], side: int) -> ImageTable:
    images = [data.resize(s.images, side).reshape(len(s.images), -1) for s in sets]
    first_rows = np.cumsum([0, *map(len, images)])[:-1]
    train = [pixels[: s.bounds[1]].astype(np.float32) for s, pixels in zip(sets, images, strict=True)]
    return ImageTable(
        pixels=jnp.asarray(np.concatenate(images)),
        labels=jnp.asarray(np.concatenate([s.labels for s in sets])),
        starts=jnp.asarray([[first + b for b in s.bounds[:3]] for first, s in zip(first_rows, sets, strict=True)]),
        sizes=jnp.asarray([np.diff(s.bounds) for s in sets]),
        mean=jnp.asarray([t.mean() for t in train]),
        std=jnp.asarray([t.std() for t in train]),
    )


def classification(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """Mean cross entropy in nats, "loss", and accuracy in [0, 1], "accuracy"."""
    return {
        "loss": jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels)),
        "accuracy": jnp.mean(jnp.argmax(logits, axis=-1) == labels),
    }
