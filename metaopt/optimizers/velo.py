"""VeLO: for each tensor an LSTM mixes a per-parameter network out of a bank of networks.

Source: Metz et al., "VeLO: Training versatile learned optimizers by scaling up",
arXiv:2211.09760; HyperV2 in google/learned_optimization,
research/general_lopt/hyper_v2.py.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metaopt.core import Key, Learned, Params, Theta
from metaopt.nn import mlp
from metaopt.nn.lstm import LSTMState
from metaopt.optimizers.common import channels, features, per_parameter, recurrent, rule, tiling
from metaopt.optimizers.common.features import NUM_PROGRESS_FEATURES
from metaopt.optimizers.common.gradients import clip_and_zero_nan
from metaopt.optimizers.common.moments import Decays, Moments, init_moments, map_tensors, update_moments
from metaopt.optimizers.common.velo_network import DECAYS, LAYER_SIZES

NUM_RANKS = 5  # ranks 0 to 4, one-hot
# Mean of the second moment, rank, and variances of each momentum and of the second moment about it.
NUM_STATISTICS = 1 + NUM_RANKS + 2 * len(DECAYS.momentum)
NUM_INPUTS = NUM_PROGRESS_FEATURES + NUM_STATISTICS


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
            num_tensors = len(jax.tree.leaves(params))
            return State(
                jnp.zeros((), jnp.int32),
                init_moments(params, DECAYS),
                recurrent.initial_state(theta, num_tensors),
                features.init_losses(),
            )

        def update(grads: Params, state: State, params: Params, value: jax.Array) -> tuple[Params, State]:
            if not jax.tree.leaves(params):  # under optax.multi_transform a label may have no parameters
                return params, state
            grads = jax.tree.map(clip_and_zero_nan, grads)
            progress, losses = features.progress_features(state.step, num_steps, state.losses, value, longest)

            def lstm_input(p: jax.Array, moments: Moments) -> jax.Array:
                return jnp.concatenate([progress, statistics(p, moments)])

            lstm_inputs = jnp.stack(jax.tree.leaves(map_tensors(lstm_input, state.moments, params)))
            lstm_state = recurrent.step(theta, lstm_inputs, state.recurrent)
            step_sizes = recurrent.dense(theta["step_size"], lstm_state.hidden)[:, 0]
            mixed = mix(theta["bank"], recurrent.dense(theta["controls"], lstm_state.hidden))
            moments = update_moments(_decays_after(step_sizes), state.moments, grads)

            def update_tensor(p: jax.Array, g: jax.Array, i: jax.Array | int, moments: Moments) -> jax.Array:
                scale = config.step_multiplier * step_sizes[i]
                if config.relative:
                    scale = scale * per_parameter.root_mean_square(p)
                step = per_parameter.scaled_step(scale, config.exp_multiplier)
                weights = jax.tree.map(lambda w: w[i], mixed)
                return per_parameter.apply(weights, channels.velo, channels.tensor_inputs(p, g, moments), step)

            index = jax.tree.unflatten(jax.tree.structure(params), range(len(step_sizes)))
            updates = map_tensors(update_tensor, moments, params, grads, index)
            kept = state.recurrent if config.bugged_lstm_state else lstm_state
            return updates, State(state.step + 1, moments, kept, losses)

        return rule.transformation(init_state, update, name="velo", needs_value=True, largest_gradient=jnp.inf)

    return Learned(init, bind)


def statistics(p: jax.Array, moments: Moments) -> jax.Array:
    """The (12,) statistics of one tensor that the LSTM reads, from its accumulators before the current gradient.

    In units of the parameters' root mean square k, with v the second moment and m the
    momenta: log mean(k v), the rank one-hot, log var(k m), log mean((k v - mean(k m))^2).
    The last one, and k instead of k^2 before v, are mistakes that the published weights rely on.
    """
    if not p.size:
        return jnp.zeros(NUM_STATISTICS)
    (rms,) = moments.rms
    inputs = (p, moments.momentum, rms)
    square, mean_rms, *mean_momentum = _tensor_means(_first_powers, inputs)

    def squared_distances(inputs: tuple) -> list[jax.Array]:
        _, momentum, rms = inputs
        from_own_mean = [(m - mean) ** 2 for m, mean in zip(momentum, mean_momentum, strict=True)]
        return [*from_own_mean, *[(rms - mean) ** 2 for mean in mean_momentum]]

    variances = _tensor_means(squared_distances, inputs)
    unit = jax.lax.rsqrt(jnp.maximum(1e-9, square))
    rank = jax.nn.one_hot(sum(size > 1 for size in p.shape), NUM_RANKS)
    return jnp.concatenate([_clipped_log(unit * mean_rms)[None], rank, _clipped_log(unit**2 * jnp.stack(variances))])


def _first_powers(inputs: tuple) -> list[jax.Array]:
    p, momentum, rms = inputs
    return [p * p, rms, *momentum]


def _tensor_means(f: Callable[[tuple], list[jax.Array]], inputs: tuple) -> list[jax.Array]:
    """() means over the tensor of the arrays of ``f``."""
    return [mean.ravel()[0] for mean in tiling.means(f, inputs, inputs[0].shape)]


def _clipped_log(x: jax.Array) -> jax.Array:
    return 0.5 * jnp.clip(jnp.log(1e-8 + jnp.abs(10.0 * x)), -5.0, 5.0)


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
