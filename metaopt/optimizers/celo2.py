"""Celo2: a learned direction, orthogonalized, of unit size; the step size is the user's.

Source: arXiv:2602.19142; amoudgl/celo. With weights meta-trained over long horizons,
weight decay and the gradient clipped by its global norm, it is ELO-Celo2: arXiv:2607.06772.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metaopt.core import Key, Learned, Params, PyTree, Theta
from metaopt.nn import mlp
from metaopt.optimizers.common import channels, per_parameter, roots, rule
from metaopt.optimizers.common.channels import TensorInputs
from metaopt.optimizers.common.gradients import clip_and_zero_nan
from metaopt.optimizers.common.moments import Decays, Moments, init_moments, update_moments
from metaopt.optimizers.common.stacking import Stacking
from metaopt.optimizers.common.trees import Stack, each, from_tensors, tensors

DECAYS = Decays(momentum=(0.9, 0.99, 0.999), rms=(0.95,), factored=(0.9, 0.99, 0.999))
VECTORS = ("adamw", "adam_uncorrected", "learned")
NUM_UNFACTORED = 15  # channels that do not need the factored second moment, the only ones for a vector
EPS = 1e-9  # constant under the square root of the normalizers
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Muon's coefficients: small singular values grow fast, the end is near one


@dataclasses.dataclass(frozen=True)
class Config:
    learning_rate: float = 1e-3
    weight_decay: float = 0.0  # decoupled, in units of the learning rate
    hidden: int = 8  # units in each of the two hidden layers
    orthogonalize: bool = True  # False, with vectors="learned", is Celo2-base
    vectors: str = "adamw"  # the rule of vectors, scalars and embeddings
    vector_multiplier: float = 20.0  # multiplies the learning rate of vectors, unless their rule is learned

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
    learning rate and decays of 0.9 and 0.95, from the same accumulators; or, with
    ``vectors="learned"``, the network, which then reads the first 15 channels.
    ``vectors="adam_uncorrected"`` leaves out the bias correction and the weight decay, as
    the reference does while it meta-trains.

    It has no schedule of its own; ``metaopt.compose`` adds one. It reads neither
    ``value`` nor ``num_steps``. Memory: four float32 copies of the parameters, plus
    row and column means. A NaN in a gradient counts as zero; other entries, infinite ones too, are
    clipped to +-1000.

    Departure from the reference: two outputs of its network are left out, as it
    multiplies them by zero.
    """

    def init(key: Key) -> Theta:
        return {"network": mlp.init(key, (channels.NUM_VELO_CHANNELS, config.hidden, config.hidden, 1))}

    def bind(theta: Theta, num_steps: jax.Array | int | None = None) -> optax.GradientTransformationExtraArgs:
        del num_steps
        vector_weights = theta["network"] | {"w0": theta["network"]["w0"][:NUM_UNFACTORED]}

        def init_state(params: Params) -> State:
            return State(jnp.zeros((), jnp.int32), init_moments(_stacking(params).zeros(), DECAYS))

        def matrix_network(own: tuple, inputs: list[jax.Array], shape: tuple[int, ...]) -> jax.Array:
            del own
            return mlp.apply(theta["network"], inputs, shape)[0]

        def vector_network(own: tuple, inputs: list[jax.Array], shape: tuple[int, ...]) -> jax.Array:
            del own
            return mlp.apply(vector_weights, inputs, shape)[0]

        def matrix_directions(inputs: list[TensorInputs | Stack]) -> list[jax.Array | Stack]:
            """The learned directions of tensors of rank 2 or more, of unit root mean square over each matrix."""
            directions = per_parameter.apply(matrix_network, _channels, inputs, axes=(-2, -1), eps=EPS)
            if config.orthogonalize:
                directions = [each(orthogonalize, u) for u in directions]
            return [each(_normalize_matrices, u) for u in directions]

        def vector_directions(inputs: list[TensorInputs | Stack]) -> list[jax.Array | Stack]:
            """The learned directions of vectors and scalars, of unit root mean square."""
            directions = per_parameter.apply(vector_network, _unfactored_channels, inputs, eps=EPS)
            return [each(_normalize, u) for u in directions]

        def adam_update(x: TensorInputs, step: jax.Array) -> jax.Array:
            """The update of AdamW, or of what the reference has in its place while it meta-trains."""
            rate = config.learning_rate * config.vector_multiplier
            m, v = x.momentum[0], x.rms[0]
            if config.vectors == "adam_uncorrected":
                return -rate * m * jax.lax.rsqrt(v + 1e-8)
            m = m / (1.0 - DECAYS.momentum[0] ** step)
            v = v / (1.0 - DECAYS.rms[0] ** step)
            return -rate * (m / (roots.sqrt(v) + 1e-8) + config.weight_decay * x.param)

        def update(grads: Params, state: State, params: Params, value: jax.Array | None) -> tuple[Params, State]:
            del value
            stacking, kind_of = _stacking(params), jax.tree.leaves(kinds(params))
            params, grads = stacking.stack(params), jax.tree.map(clip_and_zero_nan, stacking.stack(grads))
            moments = update_moments(DECAYS, state.moments, grads)
            step = state.step + 1
            inputs = channels.all_inputs(params, grads, moments)
            is_learned = [config.vectors == "learned" or kind_of[i] == "matrix" for i in stacking.first_members]
            ranks = [len(tensor.shape) for tensor in tensors(params)]
            matrices = [i for i, rank in enumerate(ranks) if is_learned[i] and rank >= 2]
            vectors = [i for i, rank in enumerate(ranks) if is_learned[i] and rank < 2]
            directions = dict(zip(matrices, matrix_directions([inputs[i] for i in matrices]), strict=True))
            directions |= zip(vectors, vector_directions([inputs[i] for i in vectors]), strict=True)

            def learned_update(x: TensorInputs, direction: jax.Array) -> jax.Array:
                return -config.learning_rate * (direction + config.weight_decay * x.param)

            def update_tensor(i: int, x: TensorInputs | Stack) -> jax.Array | Stack:
                if i not in directions:
                    return each(lambda x: adam_update(x, step), x)
                return each(learned_update, x, directions[i])

            updates = [update_tensor(i, x) for i, x in enumerate(inputs)]
            return stacking.unstack(from_tensors(updates, params, params)), State(step, moments)

        return rule.transformation(init_state, update, name="celo2", largest_gradient=jnp.inf)

    return Learned(init, bind)


def kinds(params: Params) -> PyTree:
    """For each tensor "vector", if its rank is below two or "embed" is in its path, else "matrix"."""

    def kind(path: tuple, p: jax.Array) -> str:
        return "vector" if p.ndim < 2 or "embed" in jax.tree_util.keystr(path).lower() else "matrix"

    return jax.tree.map_with_path(kind, params)


def _stacking(params: Params) -> Stacking:
    """Stacks of tensors of one kind."""
    return Stacking(params, labels=jax.tree.leaves(kinds(params)))


def _normalize(u: jax.Array) -> jax.Array:
    """A vector with a root mean square of one."""
    return u * jax.lax.rsqrt(EPS + jnp.mean(u * u))


def _normalize_matrices(u: jax.Array) -> jax.Array:
    """Matrices, over the last two axes, with a root mean square of one each."""
    return u * jax.lax.rsqrt(EPS + jnp.mean(u * u, axis=(-2, -1), keepdims=True))


def orthogonalize(u: jax.Array) -> jax.Array:
    """Moves the singular values over the last two axes toward one by five Newton-Schulz steps.

        x <- a x + (b g + c g^2) x,   g = x x^T

    or, if that is smaller, g = x^T x and multiplications from the right; nothing is transposed.
    (The function of Optax's Muon keeps three more copies of a tensor.)
    """
    tall = u.shape[-2] > u.shape[-1]

    def step(_: jax.Array, x: jax.Array) -> jax.Array:
        a, b, c = NEWTON_SCHULZ
        gram = x.mT @ x if tall else x @ x.mT
        polynomial = b * gram + c * (gram @ gram)
        return a * x + (x @ polynomial if tall else polynomial @ x)

    return jax.lax.fori_loop(0, 5, step, u / (roots.norm(u, axis=(-2, -1)) + 1e-8))


def _channels(x: channels.TensorInputs) -> list[jax.Array]:
    return channels.velo(x, eps=1e-8)


def _unfactored_channels(x: channels.TensorInputs) -> list[jax.Array]:
    return _channels(x)[:NUM_UNFACTORED]
