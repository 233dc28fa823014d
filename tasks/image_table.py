"""Image data sets as one table resident on the device, drawn from by key."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tasks import data

NUM_CLASSES = 10
NUM_EVALUATED = 1000  # examples of a split that a task's ``measure`` looks at


class Subset(NamedTuple):
    """Consecutive examples of a split, which is read as a ring; the order is random."""

    first: jax.Array  # () int32, position in the split
    count: jax.Array  # () int32


class ImageTable(NamedTuple):
    """Several data sets at one resolution, one below the other.

    A batch is indices drawn on the device and a gather: nothing is copied from the
    host. Which set a row belongs to is an array, so it can differ between tasks that
    run side by side in one vmap.
    """

    pixels: jax.Array  # (num_rows, side * side) uint8
    labels: jax.Array  # (num_rows,) int32
    starts: jax.Array  # (num_sets, 3) int32, first row of train, valid, test
    sizes: jax.Array  # (num_sets, 3) int32
    mean: jax.Array  # (num_sets,) of the training pixels
    std: jax.Array  # (num_sets,)

    def batch(
        self, dataset: jax.Array | int, split: str, key: jax.Array, num: int, subset: Subset | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Draws (num, pixels) float32 standardized inputs and (num,) labels."""
        first, count = subset or self.whole(dataset, split)
        return self._rows(dataset, split, first + jax.random.randint(key, (num,), 0, count))

    def evenly_spaced(
        self, dataset: jax.Array | int, split: str, num: int, subset: Subset | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """The same ``num`` examples at every call, evenly spaced over the split.

        A split with fewer examples gives each one about equally often.
        """
        first, count = subset or self.whole(dataset, split)
        return self._rows(dataset, split, first + (jnp.arange(num) / num * count).astype(jnp.int32))

    def whole(self, dataset: jax.Array | int, split: str) -> Subset:
        return Subset(jnp.zeros((), jnp.int32), self.sizes[dataset, data.SPLITS.index(split)])

    def draw_subset(self, dataset: jax.Array | int, split: str, key: jax.Array, smallest: int) -> Subset:
        """A random subset, consecutive examples, with a number of examples log-uniform from ``smallest`` to all.

        A split that is not larger than ``smallest`` stays whole.
        """
        k_first, k_count = jax.random.split(key)
        size = self.whole(dataset, split).count
        count = smallest * ((size + 1) / smallest) ** jax.random.uniform(k_count)
        return Subset(jax.random.randint(k_first, (), 0, size), jnp.minimum(count.astype(jnp.int32), size))

    def _rows(self, dataset, split, positions):
        s = data.SPLITS.index(split)
        rows = self.starts[dataset, s] + positions % self.sizes[dataset, s]
        inputs = (self.pixels[rows].astype(jnp.float32) - self.mean[dataset]) / self.std[dataset]
        return inputs, self.labels[rows]


@functools.cache
def build(names: tuple[str, ...], side: int) -> ImageTable:
    """Loads the sets, resized to ``side``, onto the device; one copy per process.

    Raises:
      UserError: if a set is unknown or missing.
    """
    sets = [data.load(name) for name in names]
    with jax.ensure_compile_time_eval():  # the first use may be inside a traced function
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
    """Mean cross entropy in nats and accuracy in [0, 1]."""
    return {
        "loss": jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels)),
        "accuracy": jnp.mean(jnp.argmax(logits, axis=-1) == labels),
    }
