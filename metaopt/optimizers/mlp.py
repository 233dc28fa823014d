"""mlp: a per-parameter network that reads the gradient and six momenta.

Source: Metz et al., "Understanding and correcting pathologies in the training of
learned optimizers", arXiv:1810.10180; MLPLOpt in google/learned_optimization,
learned_optimizers/mlp_lopt.py.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metaopt.core import Key, Learned, Params, Theta
from metaopt.nn import mlp
from metaopt.optimizers.common import channels, features, per_parameter, rule
from metaopt.optimizers.common.moments import Decays, Moments, init_moments, update_moments
from metaopt.optimizers.common.trees import from_tensors

DECAYS = Decays(momentum=(0.1, 0.5, 0.9, 0.99, 0.999, 0.9999), rms=(), factored=())


@dataclasses.dataclass(frozen=True)
class Config:
    hidden: int = 32  # units in each hidden layer
    layers: int = 2  # hidden layers
    step_multiplier: float = 1e-3  # scales the whole update
    exp_multiplier: float = 1e-3  # range of the learned log step size

    def __post_init__(self):
        if self.hidden < 1 or self.layers < 1:
            raise ValueError(f"hidden and layers must be at least 1, got {self.hidden} and {self.layers}")


class State(NamedTuple):
    step: jax.Array  # () int32
    moments: Moments  # momenta only


def build(config: Config = Config()) -> Learned:
    """Returns the per-parameter MLP optimizer (MLPLOpt).

    For each parameter, with the gradient, the parameter and six momenta as
    normalized channels f and 11 time features e,

        (d, a) = network(f, e),   p <- p - step_multiplier * d * exp(exp_multiplier * a)

    Memory: six float32 copies of the parameters. It reads neither ``value`` nor
    ``num_steps``. An entry of a gradient that is NaN, infinite or larger than 1e14 counts as zero.
    """

    def init(key: Key) -> Theta:
        num_in = 2 + len(DECAYS.momentum) + len(features.TIME_SCALES)
        return {"network": mlp.init(key, (num_in, *[config.hidden] * config.layers, 2))}

    def bind(theta: Theta, num_steps: jax.Array | int | None = None) -> optax.GradientTransformationExtraArgs:
        del num_steps

        def init_state(params: Params) -> State:
            return State(jnp.zeros((), jnp.int32), init_moments(params, DECAYS))

        def update(grads: Params, state: State, params: Params, value: jax.Array | None) -> tuple[Params, State]:
            del value
            moments = update_moments(DECAYS, state.moments, grads)
            time = features.time_features(state.step)
            weights = per_parameter.fold_time(theta["network"], time)

            def network(own: tuple, inputs: list[jax.Array], shape: tuple[int, ...]) -> jax.Array:
                del own
                direction, log_size = mlp.apply(weights, inputs, shape)
                return per_parameter.step(direction, log_size, config.step_multiplier, config.exp_multiplier)

            inputs = channels.all_inputs(params, grads, moments)
            updates = from_tensors(per_parameter.apply(network, _channels, inputs), params, params)
            return updates, State(state.step + 1, moments)

        return rule.transformation(init_state, update, name="mlp", stacks=True)

    return Learned(init, bind)


def _channels(x: channels.TensorInputs) -> list[jax.Array]:
    return [x.grad, x.param, *x.momentum]
