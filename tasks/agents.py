"""Actors and critics: dense networks with the names of Flax, and the distribution of actions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaopt.core import Key, Params

HIDDEN_GAIN, POLICY_GAIN, VALUE_GAIN = 2**0.5, 0.01, 1.0  # of orthogonal initial weights


def init_network(key: Key, widths: tuple[int, ...], gain: float) -> Params:
    """Layers ``{"Dense_0": {"kernel", "bias"}, ...}``, the last with ``gain``."""
    params, last = {}, len(widths) - 2
    for layer, shape in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        draw = jax.nn.initializers.orthogonal(gain if layer == last else HIDDEN_GAIN)
        kernel = draw(jax.random.fold_in(key, layer), shape, jnp.float32)
        params[f"Dense_{layer}"] = {"kernel": kernel, "bias": jnp.zeros(shape[1])}
    return params


def layer_outputs(params: Params, x: jax.Array) -> list[jax.Array]:
    """The outputs (..., num_units) of every layer; hidden layers end with tanh."""
    outputs, last = [], len(params) - 1
    for layer in range(len(params)):
        weights = params[f"Dense_{layer}"]
        x = x @ weights["kernel"] + weights["bias"]
        x = x if layer == last else jnp.tanh(x)
        outputs.append(x)
    return outputs


def apply_network(params: Params, x: jax.Array) -> jax.Array:
    """The output (..., num_outputs) of the last layer."""
    return layer_outputs(params, x)[-1]


def unit_activity(params: Params, x: jax.Array) -> Params:
    """For each layer the (num_units,) mean of |output| over a batch, for optimizers that ask."""
    return {f"Dense_{i}": jnp.mean(jnp.abs(y), axis=0) for i, y in enumerate(layer_outputs(params, x))}


class Categorical(NamedTuple):
    """A distribution over actions to choose from."""

    logits: jax.Array  # (..., num_actions)

    def sample(self, key: Key) -> jax.Array:
        return jax.random.categorical(key, self.logits)

    def log_prob(self, action: jax.Array) -> jax.Array:
        return jnp.take_along_axis(jax.nn.log_softmax(self.logits), action[..., None], axis=-1)[..., 0]

    def entropy(self) -> jax.Array:
        log_probs = jax.nn.log_softmax(self.logits)
        return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


class Normal(NamedTuple):
    """Independent normal distributions of the coordinates of an action."""

    mean: jax.Array  # (..., num_coordinates)
    log_std: jax.Array  # (num_coordinates,)

    def sample(self, key: Key) -> jax.Array:
        return self.mean + jnp.exp(self.log_std) * jax.random.normal(key, self.mean.shape)

    def log_prob(self, action: jax.Array) -> jax.Array:
        z = (action - self.mean) * jnp.exp(-self.log_std)
        return -0.5 * jnp.sum(z * z + 2.0 * self.log_std + jnp.log(2.0 * jnp.pi), axis=-1)

    def entropy(self) -> jax.Array:
        of_all = jnp.sum(self.log_std + 0.5 * jnp.log(2.0 * jnp.pi * jnp.e))
        return jnp.broadcast_to(of_all, self.mean.shape[:-1])
