"""VeLO: for each tensor an LSTM mixes a per-parameter network out of a bank of networks.

Source: Metz et al., "VeLO: Training versatile learned optimizers by scaling up",
arXiv:2211.09760; HyperV2 in google/learned_optimization,
research/general_lopt/hyper_v2.py.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metaopt.core import Key, Learned, Params, Theta
from metaopt.nn import dense, mlp
from metaopt.nn.lstm import LSTMState
from metaopt.optimizers.common import channels, features, per_parameter, recurrent, rule, statistics
from metaopt.optimizers.common.channels import TensorInputs
from metaopt.optimizers.common.features import NUM_PROGRESS_FEATURES
from metaopt.optimizers.common.gradients import clip_and_zero_nan
from metaopt.optimizers.common.moments import Decays, Moments, init_moments, update_moments
from metaopt.optimizers.common.trees import each, from_tensors, split, tensors
from metaopt.optimizers.common.velo_network import DECAYS, LAYER_SIZES

NUM_INPUTS = NUM_PROGRESS_FEATURES + statistics.NUM_STATISTICS


@dataclasses.dataclass(frozen=True)
class Config:
    hidden: int = 128  # units of the LSTM; the published VeLO has 512
    bank: int = 64  # number of networks that are mixed; the published VeLO has 256
    step_multiplier: float = 1e-3  # scales the whole update
    exp_multiplier: float = 1e-3  # range of the learned log step size
    relative: bool = True  # steps in units of the root mean square of each tensor; muVeLO has it off
    # Defects of the reference that early weights were meta-trained with:
    bugged_loss_features: bool = False  # ten equal time scales of the loss
    bugged_lstm_state: bool = False  # the LSTM never advances

    def __post_init__(self):
        if self.hidden < 1 or self.bank < 1:
            raise ValueError(f"hidden and bank must be at least 1, got {self.hidden} and {self.bank}")


class State(NamedTuple):
    step: jax.Array  # () int32
    moments: Moments
    recurrent: LSTMState  # (num_tensors, hidden), in the order of jax.tree.leaves
    losses: features.Losses


def build(config: Config = Config()) -> Learned:
    """Returns the VeLO optimizer.

    For each tensor, an LSTM reads the fraction of training done, how the loss falls and
    statistics of the tensor, and outputs a step size s and controls c; for each parameter
    with 30 normalized channels f,

        weights = 100 mean_n(c_n bank_n),   (d, a) = network(f)
        p <- p - step_multiplier * s * rms(p) * d * exp(exp_multiplier * a)

    It needs ``num_steps`` and reads ``value``. The LSTM's input depends on all tensors, so a mask
    or a partition changes the updates of the others. A tensor of zeros hardly moves, because
    steps are relative. Memory: four float32 copies of the parameters, plus row and column
    means. Beyond ``num_steps`` it continues with the features of a training that is complete.

    Departures from the reference: its unused weights are left out (a third output, a third
    mixing layer); a loss that is not finite is skipped and a NaN in a gradient counts as zero,
    where in the reference either would make all parameters NaN. As there, the other entries of a
    gradient, infinite ones too, are clipped to +-1000.

    Raises:
      ValueError: from ``bind``, without ``num_steps``.
    """

    def init(key: Key) -> Theta:
        k_bank, k_recurrent = jax.random.split(key)
        heads = {"controls": config.bank, "step_size": 1}
        init_network = functools.partial(mlp.init, sizes=LAYER_SIZES)
        return {
            "bank": jax.vmap(init_network)(jax.random.split(k_bank, config.bank)),
            **recurrent.init(k_recurrent, NUM_INPUTS, config.hidden, heads),
        }

    def bind(theta: Theta, num_steps: jax.Array | int | None = None) -> optax.GradientTransformationExtraArgs:
        if num_steps is None:
            raise ValueError("velo looks at the fraction of training done: pass num_steps=")
        longest = 10 if config.bugged_loss_features else num_steps

        def init_state(params: Params) -> State:
            return State(
                jnp.zeros((), jnp.int32),
                init_moments(params, DECAYS),
                recurrent.initial_state(theta, sum(x.count for x in tensors(params))),
                features.init_losses(),
            )

        def update(grads: Params, state: State, params: Params, value: jax.Array) -> tuple[Params, State]:
            if not jax.tree.leaves(params):  # under optax.multi_transform a label may have no parameters
                return params, state
            grads = jax.tree.map(clip_and_zero_nan, grads)
            progress, losses = features.progress_features(state.step, num_steps, state.losses, value, longest)

            of_tensors = statistics.of_tensors(params, state.moments)
            shared = jnp.broadcast_to(progress, (len(of_tensors), len(progress)))
            lstm_inputs = jnp.concatenate([shared, of_tensors], axis=1)
            lstm_state = recurrent.step(theta, lstm_inputs, state.recurrent)
            step_sizes = dense.apply(theta["step_size"], lstm_state.hidden)[:, 0]
            mixed = mix(theta["bank"], dense.apply(theta["controls"], lstm_state.hidden))
            moments = update_moments(_decays_after(step_sizes), state.moments, grads)

            def scaled(x: TensorInputs, own: tuple[jax.Array, Theta]) -> tuple[jax.Array, Theta]:
                """The step size of a tensor, in units of its parameters, and the weights of its network."""
                step_size, weights = own
                scale = config.step_multiplier * step_size
                return scale * per_parameter.root_mean_square(x.param) if config.relative else scale, weights

            def network(own: tuple, inputs: list[jax.Array], shape: tuple[int, ...]) -> jax.Array:
                scale, weights = own
                direction, log_size = mlp.apply(weights, inputs, shape)
                return per_parameter.step(direction, log_size, scale, config.exp_multiplier)

            inputs = channels.all_inputs(params, grads, moments)
            own = list(map(functools.partial(each, scaled), inputs, split((step_sizes, mixed), tensors(params))))
            updates = from_tensors(per_parameter.apply(network, channels.velo, inputs, own), params, params)
            kept = state.recurrent if config.bugged_lstm_state else lstm_state
            return updates, State(state.step + 1, moments, kept, losses)

        return rule.transformation(
            init_state, update, name="velo", stacks=True, needs_value=True, largest_gradient=jnp.inf
        )

    return Learned(init, bind)


def _decays_after(step_sizes: jax.Array) -> Decays:
    """DECAYS, made to depend on the step sizes without changing their values.

    The step sizes come from the old accumulators, which are not needed afterwards. If the compiler
    cannot see that, it copies all accumulators before it overwrites them.
    """
    zero = jnp.where(jnp.any(step_sizes > jnp.inf), 1.0, 0.0)
    return jax.tree.map(lambda b: b + zero, DECAYS)


def mix(bank: Theta, controls: jax.Array) -> Theta:
    """``100 mean_n(controls_tn bank_n)``: the weights of each tensor t, stacked."""
    return jax.tree.map(lambda w: 100.0 / len(w) * jnp.tensordot(controls, w, axes=1), bank)
