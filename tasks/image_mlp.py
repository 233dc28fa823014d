"""Classification of small images with a randomly sampled multi-layer perceptron."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metaopt.core import Key, Params
from tasks import image_table
from tasks.image_table import NUM_CLASSES, NUM_EVALUATED
from tasks.supervised import Supervised

ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh, "silu": jax.nn.silu}


class Sampled(NamedTuple):
    """One problem; all problems of a task have the same static shapes."""

    dataset: jax.Array  # () int32, index into ``datasets``
    activation: jax.Array  # (num_activations,) one-hot
    init_scale: jax.Array  # (depth + 1,) factor of the initial weights of each layer
    input_scale: jax.Array  # () factor of the inputs
    unit_mask: jax.Array  # (width,) 1 for units that exist, else 0
    layer_mask: jax.Array  # (depth,) 1 for layers that exist, else 0; the first layer always exists
    train_subset: image_table.Subset  # training examples


@dataclasses.dataclass(frozen=True)
class ImageMLP(Supervised):
    """A distribution of classifiers ``side * side -> width x depth -> 10``.

    Data set, activation function, numbers of units and layers, and initial scales are drawn for
    each problem; the arrays always have the shapes of the largest network. By default every
    range is a single value.

    Attributes:
      datasets: names of data sets, see ``tasks.data``.
      side: images are averaged down to side x side pixels.
      width: largest number of units in each hidden layer.
      depth: largest number of hidden layers.
      batch_size: number of examples in one inner step.
      min_width: smallest number of units, which is drawn log-uniformly; 0 means always ``width``.
      min_depth: smallest number of hidden layers, which is drawn uniformly; 0 means always ``depth``.
      activations: names of activation functions, see ACTIVATIONS.
      max_init_factor: the initial weights of each layer are multiplied by a factor that is
        log-uniform in [1 / max_init_factor, max_init_factor].
      max_input_factor: the inputs are multiplied by a factor with the same kind of distribution.
      min_train: smallest number of training examples, which is drawn log-uniformly; 0 means
        always all of them. A network overfits few examples soon.
      mup: whether the network is in muP: the last layer starts at zero and its outputs are divided
        by its fan-in, and the updates of the hidden layers are divided by their fan-in.
      name: name of the task.
    """

    datasets: tuple[str, ...] = ("digits",)
    side: int = 8
    width: int = 32
    depth: int = 1
    batch_size: int = 64
    min_width: int = 0
    min_depth: int = 0
    activations: tuple[str, ...] = ("relu",)
    max_init_factor: float = 1.0
    max_input_factor: float = 1.0
    min_train: int = 0
    mup: bool = False
    name: str = "image-mlp"

    @property
    def table(self) -> image_table.ImageTable:
        """The examples of all data sets."""
        return image_table.build(self.datasets, self.side)

    def traits(self) -> dict[str, Any]:
        return {
            "family": "mlp",
            "datasets": list(self.datasets),
            "architecture": {
                "side": [self.side] * 2,
                "depth": [self.min_depth or self.depth, self.depth],
                "width": [self.min_width or self.width, self.width],
            },
        }

    def sample(self, key: Key) -> Sampled:
        k_set, k_act, k_init, k_input, k_width, k_depth, k_subset = jax.random.split(key, 7)
        dataset = jax.random.randint(k_set, (), 0, len(self.datasets))
        num_units = jnp.float32(self.width)
        if self.min_width:
            ratio = (self.width + 1) / self.min_width
            num_units = jnp.floor(self.min_width * ratio ** jax.random.uniform(k_width))
        num_layers = jax.random.randint(k_depth, (), self.min_depth or self.depth, self.depth + 1)
        subset = self.table.whole(dataset, "train")
        if self.min_train:
            subset = self.table.draw_subset(dataset, "train", k_subset, self.min_train)
        activation = jax.random.randint(k_act, (), 0, len(self.activations))
        return Sampled(
            dataset=dataset,
            activation=jax.nn.one_hot(activation, len(self.activations)),
            init_scale=_log_uniform(k_init, (self.depth + 1,), self.max_init_factor),
            input_scale=_log_uniform(k_input, (), self.max_input_factor),
            unit_mask=(jnp.arange(self.width) < num_units).astype(jnp.float32),
            layer_mask=(jnp.arange(self.depth) < num_layers).astype(jnp.float32),
            train_subset=subset,
        )

    def init(self, task_params: Sampled, key: Key) -> Params:
        """Normal weights with variance 1 / fan_in (He initialization has 2 / fan_in), and zero biases."""
        num_units = jnp.sum(task_params.unit_mask)
        sizes = [self.side**2, *[self.width] * self.depth, NUM_CLASSES]
        params = {}
        for layer, (num_in, num_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            fan_in = num_in if layer == 0 else num_units
            draw = jax.random.normal(jax.random.fold_in(key, layer), (num_in, num_out))
            draw = 0.0 * draw if self.mup and layer == self.depth else draw
            params[f"w{layer}"] = draw * jax.lax.rsqrt(fan_in * 1.0) * task_params.init_scale[layer]
            params[f"b{layer}"] = jnp.zeros(num_out)
        return params

    def multipliers(self, task_params: Sampled) -> Params | None:
        """The factors of the updates in muP: 1 / fan_in for the weights of hidden layers, else 1."""
        if not self.mup:
            return None
        names = [f"{kind}{layer}" for layer in range(self.depth + 1) for kind in "wb"]
        hidden = {f"w{layer}" for layer in range(1, self.depth)}
        inverse_fan_in = 1.0 / jnp.sum(task_params.unit_mask)
        return {name: inverse_fan_in if name in hidden else 1.0 for name in names}

    def logits(self, task_params: Sampled, params: Params, inputs: jax.Array) -> jax.Array:
        """The outputs (num, 10) of the network for inputs (num, pixels)."""
        return self._layer_outputs(task_params, params, inputs)[-1]

    def unit_activity(self, task_params: Sampled, params: Params, key: Key) -> Params:
        inputs, _ = self._batch(task_params, key, "train")
        activity = {}
        for layer, outputs in enumerate(self._layer_outputs(task_params, params, inputs)):
            activity[f"w{layer}"] = activity[f"b{layer}"] = jnp.mean(jnp.abs(outputs), axis=0)
        return activity

    def _layer_outputs(self, task_params: Sampled, params: Params, inputs: jax.Array) -> list[jax.Array]:
        """The (num, width) units of each hidden layer after their activation function, then the logits."""
        hidden, outputs = inputs * task_params.input_scale, []
        for layer in range(self.depth):
            new = self._activate(task_params, hidden @ params[f"w{layer}"] + params[f"b{layer}"])
            if self.min_width:
                new = new * task_params.unit_mask
            if self.min_depth and layer > 0:  # a layer that does not exist is the identity
                new = jnp.where(task_params.layer_mask[layer] > 0, new, hidden)
            hidden = new
            outputs.append(hidden)
        logits = hidden @ params[f"w{self.depth}"] + params[f"b{self.depth}"]
        return [*outputs, logits / jnp.sum(task_params.unit_mask) if self.mup else logits]

    def _activate(self, task_params: Sampled, x: jax.Array) -> jax.Array:
        functions = [ACTIVATIONS[name] for name in self.activations]
        if len(functions) == 1:
            return functions[0](x)
        mixed: Any = sum(task_params.activation[i] * f(x) for i, f in enumerate(functions))
        return mixed

    def outputs(self, task_params: Sampled, params: Params, key: Key, split: str = "train") -> jax.Array:
        return self._on_batch(task_params, params, key, split)[0]

    def loss(self, task_params: Sampled, params: Params, key: Key, split: str = "train") -> jax.Array:
        logits, labels = self._on_batch(task_params, params, key, split)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    def measure(self, task_params: Sampled, params: Params, split: str) -> dict[str, jax.Array]:
        inputs, labels = self.table.evenly_spaced(
            task_params.dataset, split, NUM_EVALUATED, self._subset(task_params, split)
        )
        return image_table.classification(self.logits(task_params, params, inputs), labels)

    def _on_batch(self, task_params: Sampled, params: Params, key: Key, split: str) -> tuple[jax.Array, jax.Array]:
        inputs, labels = self._batch(task_params, key, split)
        return self.logits(task_params, params, inputs), labels

    def _batch(self, task_params: Sampled, key: Key, split: str) -> tuple[jax.Array, jax.Array]:
        subset = self._subset(task_params, split)
        return self.table.batch(task_params.dataset, split, key, self.batch_size, subset)

    def _subset(self, task_params: Sampled, split: str) -> image_table.Subset | None:
        return task_params.train_subset if split == "train" else None


def _log_uniform(key: Key, shape: tuple[int, ...], largest: float) -> jax.Array:
    """Random numbers that are log-uniform in [1 / largest, largest]."""
    return largest ** jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
