"""small_fc: a tiny per-parameter network that reads Adafactor-like features.

Source: Metz et al., "Practical tradeoffs between memory, compute, and performance
in learned optimizers", arXiv:2203.11860; AdafacMLPLOpt in
google/learned_optimization, learned_optimizers/adafac_mlp_lopt.py.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metaopt.core import Key, Learned, Params, Theta
from metaopt.nn import mlp
from metaopt.optimizers.common import channels, features, per_parameter, roots, rule
from metaopt.optimizers.common.gradients import LARGEST_TO_THE_FOURTH
from metaopt.optimizers.common.moments import Decays, Moments, init_moments, update_moments
from metaopt.optimizers.common.trees import each, from_tensors

INITIAL_DECAYS = Decays(momentum=(0.9, 0.99, 0.999), rms=(0.999,), factored=(0.9, 0.99, 0.999))
SMALLEST_RMS = 0.03  # with relative steps, tensors with a smaller root mean square, e.g. zero biases, count as this


@dataclasses.dataclass(frozen=True)
class Config:
    hidden: int = 4  # units in each of the two hidden layers
    step_multiplier: float = 1e-3  # scales the whole update
    exp_multiplier: float = 1e-3  # range of the learned log step size
    # Two departures from the published optimizer, off by default:
    schedule: bool = False  # learn a step size over time; needs num_steps
    relative: bool = False  # steps in units of the root mean square of each tensor

    def __post_init__(self):
        if self.hidden < 1:
            raise ValueError(f"hidden must be at least 1, got {self.hidden}")


class State(NamedTuple):
    step: jax.Array  # () int32
    moments: Moments


def _decays(initial: Sequence[jax.Array | float], offset: jax.Array) -> list[jax.Array]:
    """``1 - (1 - initial) * exp(10 * offset)``: an offset of zero is the initial decay."""
    return list(1.0 - (1.0 - jnp.array(initial)) * jnp.exp(10.0 * offset))


def unit(p: jax.Array) -> jax.Array:
    """The unit of a tensor's relative steps."""
    return jnp.maximum(roots.sqrt(jnp.mean(p * p)), SMALLEST_RMS)


def build(config: Config = Config()) -> Learned:
    """Returns the small_fc optimizer (AdafacMLPLOpt).

    For each parameter, with 28 normalized channels f, 11 time features e and a
    network of two hidden layers,

        (d, a) = network(f, e),   p <- p - step_multiplier * d * exp(exp_multiplier * a)

    Meta-parameters: the network and the decays of the accumulators. Memory: four
    float32 copies of the parameters, plus row and column means. It does not read
    ``value``. With ``relative`` the step is multiplied by max(rms(p), 0.03) of its
    tensor; with ``schedule`` by exp(s . (e, u)), s learned and u nine features of the
    fraction of ``num_steps`` that is done. Beyond ``num_steps`` u stays at its end, as for a training
    that is complete. An entry of a gradient that is NaN, infinite or larger than 1e7 counts as zero.

    Raises:
      ValueError: from ``bind``, with ``schedule`` and without ``num_steps``.
    """

    def init(key: Key) -> Theta:
        sizes = (channels.NUM_SMALL_FC_CHANNELS + len(features.TIME_SCALES), config.hidden, config.hidden, 2)
        theta = {
            **{f"{name}_decays": jnp.zeros(len(b)) for name, b in INITIAL_DECAYS._asdict().items()},
            "network": mlp.init(key, sizes),
        }
        if config.schedule:
            theta["schedule"] = jnp.zeros(len(features.TIME_SCALES) + len(features.FRACTIONS))
        return theta

    def bind(theta: Theta, num_steps: jax.Array | int | None = None) -> optax.GradientTransformationExtraArgs:
        if config.schedule and num_steps is None:
            raise ValueError("this small_fc has a learned schedule and needs the length of training: pass num_steps=")
        decays = Decays(*(_decays(b, theta[f"{name}_decays"]) for name, b in INITIAL_DECAYS._asdict().items()))

        def init_state(params: Params) -> State:
            return State(jnp.zeros((), jnp.int32), init_moments(params, decays))

        def update(grads: Params, state: State, params: Params, value: jax.Array | None) -> tuple[Params, State]:
            del value
            moments = update_moments(decays, state.moments, grads)
            time = features.time_features(state.step)
            scale = config.step_multiplier
            if num_steps is not None and config.schedule:
                elapsed = jnp.concatenate([time, features.fraction_features(state.step, num_steps)])
                scale = scale * jnp.exp(theta["schedule"] @ elapsed)

            weights = per_parameter.fold_time(theta["network"], time)

            def network(unit: Any, inputs: list[jax.Array], shape: tuple[int, ...]) -> jax.Array:
                direction, log_size = mlp.apply(weights, inputs, shape)
                size = scale * unit if config.relative else scale
                return per_parameter.step(direction, log_size, size, config.exp_multiplier)

            inputs = channels.all_inputs(params, grads, moments)
            units = [each(lambda x: unit(x.param), x) for x in inputs] if config.relative else None
            updates = from_tensors(per_parameter.apply(network, channels.small_fc, inputs, units), params, params)
            return updates, State(state.step + 1, moments)

        return rule.transformation(
            init_state, update, name="small_fc", stacks=True, largest_gradient=LARGEST_TO_THE_FOURTH
        )

    return Learned(init, bind)
