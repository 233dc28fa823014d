"""Celo2: a learned direction, orthogonalized, of unit size; the step size is the user's.

Source: arXiv:2602.19142; amoudgl/celo. With weights meta-trained over long horizons,
weight decay and clipping of the global norm in front of it, ELO-Celo2: arXiv:2607.06772.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaopt.core import Key, Learned, Theta
from metaopt.nn import mlp
from metaopt.optimizers.common import channels, per_parameter, rule
from metaopt.optimizers.common.accumulators import differentiable
from metaopt.optimizers.common.moments import Decays, Moments, init_moments, map_tensors, update_moments
from metaopt.optimizers.velo import clean

DECAYS = Decays(momentum=(0.9, 0.99, 0.999), rms=(0.95,), factored=(0.9, 0.99, 0.999))
VECTORS = ("adamw", "adam_uncorrected", "learned")
NUM_UNFACTORED = 15  # channels that are there for a vector too
EPS = 1e-9  # of the normalizers
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # as in Muon: a steep start, an end near one


@dataclasses.dataclass(frozen=True)
class Config:
    learning_rate: float = 1e-3
    weight_decay: float = 0.0  # decoupled, in units of the learning rate
    hidden: int = 8  # units in each of the two hidden layers
    orthogonalize: bool = True  # off is Celo2-base, together with vectors="learned"
    vectors: str = "adamw"  # the rule of vectors, scalars and embeddings
    vector_multiplier: float = 20.0  # of their learning rate, where the rule is not the learned one

    def __post_init__(self):
        if self.vectors not in VECTORS:
            raise ValueError(f"vectors must be one of {', '.join(VECTORS)}, got {self.vectors!r}")
        if self.hidden < 1:
            raise ValueError(f"hidden must be at least 1, got {self.hidden}")


class State(NamedTuple):
    step: jax.Array  # () int32
    moments: Moments


def build(config: Config = Config()) -> Learned:
    """Returns the Celo2 optimizer.

    For each matrix, or each matrix of a stack in a tensor of higher rank, with 30 channels
    f normalized over that matrix,

        u = orthogonalize(network(f)),   p <- p - learning_rate * (u / rms(u) + weight_decay * p)

    Vectors, scalars and tensors with "embed" in their path follow AdamW with 20 times the
    learning rate and decays of 0.9 and 0.95, out of the same accumulators; or, with
    ``vectors="learned"``, the network, of which they feed the first 15 channels.
    ``vectors="adam_uncorrected"`` leaves out the bias correction and the weight decay, as
    the reference does while it meta-trains.

    It has no schedule of its own: ``metaopt.compose`` takes one, of factors. It
    reads neither ``value`` nor ``num_steps``. Memory: four float32 copies of the
    parameters, plus rows and columns.

    Left out: two outputs of the reference's network, which it multiplies by zero.
    """

    def init(key: Key) -> Theta:
        return {"network": mlp.init(key, (channels.NUM_VELO_CHANNELS, config.hidden, config.hidden, 1))}

    def bind(theta: Theta, num_steps=None):
        del num_steps
        weights = theta["network"]
        of_vector = weights | {"w0": weights["w0"][:NUM_UNFACTORED]}

        def init_state(params):
            return State(jnp.zeros((), jnp.int32), init_moments(params, DECAYS))

        def learned(p, g, moments):
            parts = channels.tensor_inputs(p, g, moments)
            inputs = lambda x: channels.velo(x, eps=1e-8)
            if p.ndim < 2:
                unfactored = lambda x: inputs(x)[:NUM_UNFACTORED]
                u = per_parameter.apply(of_vector, unfactored, parts, lambda d: d, eps=EPS)
                return u * jax.lax.rsqrt(EPS + jnp.mean(u * u))
            u = per_parameter.apply(weights, inputs, parts, lambda d: d, axes=(-2, -1), eps=EPS)
            u = orthogonalize(u) if config.orthogonalize else u
            return u * jax.lax.rsqrt(EPS + jnp.mean(u * u, axis=(-2, -1), keepdims=True))

        def update(grads, state, params, value):
            del value
            grads = jax.tree.map(clean, grads)
            moments = update_moments(DECAYS, state.moments, grads)
            step = state.step + 1

            def tensor(p, g, moments, kind):
                rate = config.learning_rate
                if kind == "matrix" or config.vectors == "learned":
                    return -rate * (learned(p, g, moments) + config.weight_decay * p)
                m, v = moments.momentum[0], moments.rms[0]
                if config.vectors == "adam_uncorrected":
                    return -rate * config.vector_multiplier * m * jax.lax.rsqrt(v + 1e-8)
                corrected = lambda x, decay: x / (1.0 - decay**step)
                ratio = corrected(m, DECAYS.momentum[0]) / (
                    jnp.sqrt(differentiable(corrected(v, DECAYS.rms[0]))) + 1e-8
                )
                return -rate * config.vector_multiplier * (ratio + config.weight_decay * p)

            updates = map_tensors(tensor, moments, params, grads, kinds=kinds(params))
            return updates, State(step, moments)

        return rule.transformation(init_state, update, name="celo2")

    return Learned(init, bind)


def kinds(params):
    """For each tensor "vector", if its rank is below two or "embed" is in its path, else "matrix"."""
    is_vector = lambda path, p: p.ndim < 2 or "embed" in jax.tree_util.keystr(path).lower()
    return jax.tree.map_with_path(lambda *leaf: "vector" if is_vector(*leaf) else "matrix", params)


def orthogonalize(u: jax.Array) -> jax.Array:
    """Singular values toward one, by five steps of Newton and Schulz, over the last two axes.

        x <- a x + (b g + c g^2) x,   g = x x^T

    or g = x^T x from the right, whichever is smaller: nothing is transposed. (Optax's, of its
    Muon, keeps three more copies of a tensor.)
    """
    tall = u.shape[-2] > u.shape[-1]

    def step(_, x):
        a, b, c = NEWTON_SCHULZ
        gram = x.mT @ x if tall else x @ x.mT
        polynomial = b * gram + c * (gram @ gram)
        return a * x + (x @ polynomial if tall else polynomial @ x)

    norm = jnp.linalg.norm(u, axis=(-2, -1), keepdims=True)
    return jax.lax.fori_loop(0, 5, step, u / (norm + 1e-8))
