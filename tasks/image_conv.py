"""Classifying small images with a small convolutional network."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from tasks import image_table
from tasks.image_table import EVALUATED, NUM_CLASSES


@dataclasses.dataclass(frozen=True)
class ImageConv:
    """3x3 convolutions with stride 2 and ReLU, a mean over pixels, a linear layer.

    Attributes:
      dataset: name, see ``tasks.data``.
      side: images are averaged down to side x side pixels.
      channels: of each convolution.
      batch_size: examples of one inner step.
    """

    dataset: str = "digits"
    side: int = 8
    channels: tuple[int, ...] = (8, 16)
    batch_size: int = 64
    name: str = "image-conv"

    @property
    def table(self) -> image_table.ImageTable:
        return image_table.build((self.dataset,), self.side)

    def traits(self) -> dict:
        return {
            "family": "conv",
            "datasets": [self.dataset],
            "architecture": {"side": [self.side] * 2, "depth": [len(self.channels)] * 2, "width": [*self.channels]},
        }

    def sample(self, key):
        del key
        return ()

    def init(self, task_params, key):
        """He-normal weights, zero biases."""
        del task_params
        sizes, params = (1, *self.channels), {}
        for layer, (num_in, num_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            draw = jax.random.normal(jax.random.fold_in(key, layer), (3, 3, num_in, num_out))
            params[f"conv{layer}"] = {"w": draw * (2 / (9 * num_in)) ** 0.5, "b": jnp.zeros(num_out)}
        draw = jax.random.normal(jax.random.fold_in(key, len(self.channels)), (sizes[-1], NUM_CLASSES))
        params["head"] = {"w": draw * sizes[-1] ** -0.5, "b": jnp.zeros(NUM_CLASSES)}
        return params

    def logits(self, params, inputs):
        """(num, pixels) -> (num, 10)."""
        hidden = inputs.reshape(-1, self.side, self.side, 1)
        for layer in range(len(self.channels)):
            p = params[f"conv{layer}"]
            hidden = jax.lax.conv_general_dilated(
                hidden, p["w"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            hidden = jax.nn.relu(hidden + p["b"])
        return jnp.mean(hidden, axis=(1, 2)) @ params["head"]["w"] + params["head"]["b"]

    def outputs(self, task_params, params, key, split: str = "train"):
        del task_params
        return self._on_batch(params, key, split)[0]

    def loss(self, task_params, params, key, split: str = "train"):
        del task_params
        logits, labels = self._on_batch(params, key, split)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    def _on_batch(self, params, key, split: str):
        inputs, labels = self.table.batch(0, split, key, self.batch_size)
        return self.logits(params, inputs), labels

    def evaluate(self, task_params, params, split: str):
        del task_params
        inputs, labels = self.table.spread(0, split, EVALUATED)
        return image_table.classification(self.logits(params, inputs), labels)
