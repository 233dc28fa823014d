"""Classification of small images with a small convolutional network."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metaopt.core import Key, Params
from tasks import image_table
from tasks.image_table import NUM_CLASSES, NUM_EVALUATED
from tasks.supervised import Supervised


@dataclasses.dataclass(frozen=True)
class ImageConv(Supervised):
    """A network of 3x3 convolutions with stride 2 and ReLU, a mean over pixels, and a linear layer.

    Attributes:
      dataset: name of the data set, see ``tasks.data``.
      side: images are averaged down to side x side pixels.
      channels: number of output channels of each convolution.
      batch_size: number of examples in one inner step.
      name: name of the task.
    """

    dataset: str = "digits"
    side: int = 8
    channels: tuple[int, ...] = (8, 16)
    batch_size: int = 64
    name: str = "image-conv"

    @property
    def table(self) -> image_table.ImageTable:
        """The examples of the data set."""
        return image_table.build((self.dataset,), self.side)

    def traits(self) -> dict[str, Any]:
        return {
            "family": "conv",
            "datasets": [self.dataset],
            "architecture": {"side": [self.side] * 2, "depth": [len(self.channels)] * 2, "width": [*self.channels]},
        }

    def init(self, task_params: tuple, key: Key) -> Params:
        """Normal weights with He initialization, and zero biases."""
        del task_params
        sizes, params = (1, *self.channels), {}
        for layer, (num_in, num_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            draw = jax.random.normal(jax.random.fold_in(key, layer), (3, 3, num_in, num_out))
            params[f"conv{layer}"] = {"w": draw * (2 / (9 * num_in)) ** 0.5, "b": jnp.zeros(num_out)}
        draw = jax.random.normal(jax.random.fold_in(key, len(self.channels)), (sizes[-1], NUM_CLASSES))
        params["head"] = {"w": draw * sizes[-1] ** -0.5, "b": jnp.zeros(NUM_CLASSES)}
        return params

    def logits(self, params: Params, inputs: jax.Array) -> jax.Array:
        """The outputs (num, 10) of the network for inputs (num, pixels)."""
        return self._layer_outputs(params, inputs)["head"]

    def unit_activity(self, task_params: tuple, params: Params, key: Key) -> Params:
        """The mean activity of each channel, also over pixels."""
        del task_params
        inputs, _ = self.table.batch(0, "train", key, self.batch_size)
        outputs = self._layer_outputs(params, inputs)
        return {name: jnp.mean(jnp.abs(x), axis=range(x.ndim - 1)) for name, x in outputs.items()}

    def _layer_outputs(self, params: Params, inputs: jax.Array) -> dict[str, jax.Array]:
        """The (num, side, side, channels) outputs of each convolution after ReLU, then the logits."""
        hidden, outputs = inputs.reshape(-1, self.side, self.side, 1), {}
        for layer in range(len(self.channels)):
            p = params[f"conv{layer}"]
            hidden = jax.lax.conv_general_dilated(
                hidden, p["w"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            hidden = outputs[f"conv{layer}"] = jax.nn.relu(hidden + p["b"])
        outputs["head"] = jnp.mean(hidden, axis=(1, 2)) @ params["head"]["w"] + params["head"]["b"]
        return outputs

    def outputs(self, task_params: tuple, params: Params, key: Key, split: str = "train") -> jax.Array:
        del task_params
        return self._on_batch(params, key, split)[0]

    def loss(self, task_params: tuple, params: Params, key: Key, split: str = "train") -> jax.Array:
        del task_params
        logits, labels = self._on_batch(params, key, split)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    def _on_batch(self, params: Params, key: Key, split: str) -> tuple[jax.Array, jax.Array]:
        inputs, labels = self.table.batch(0, split, key, self.batch_size)
        return self.logits(params, inputs), labels

    def measure(self, task_params: tuple, params: Params, split: str) -> dict[str, jax.Array]:
        del task_params
        inputs, labels = self.table.evenly_spaced(0, split, NUM_EVALUATED)
        return image_table.classification(self.logits(params, inputs), labels)
