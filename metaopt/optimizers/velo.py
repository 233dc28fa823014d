"""VeLO: an LSTM for each tensor mixes the per-parameter network of that tensor.

Source: Metz et al., "VeLO: Training versatile learned optimizers by scaling up",
arXiv:2211.09760; HyperV2 in google/learned_optimization,
research/general_lopt/hyper_v2.py.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaopt.core import Key, Learned, Theta
from metaopt.nn import mlp
from metaopt.nn.lstm import LSTMState
from metaopt.optimizers.common import channels, features, per_parameter, recurrent, rule, tiling
from metaopt.optimizers.common.features import FRACTIONS, NUM_LOSS_SCALES
from metaopt.optimizers.common.moments import Decays, Moments, init_moments, map_tensors, update_moments

DECAYS = Decays(momentum=(0.9, 0.99, 0.999), rms=(0.999,), factored=(0.9, 0.99, 0.999))
SIZES = (channels.NUM_VELO_CHANNELS, 4, 4, 2)  # of the per-parameter network
NUM_RANKS = 5
# Mean of the second moment, rank, variance of momenta and of the second moment; with them fraction and loss.
NUM_STATISTICS = 1 + NUM_RANKS + 2 * len(DECAYS.momentum)
NUM_INPUTS = len(FRACTIONS) + NUM_LOSS_SCALES - 1 + NUM_STATISTICS
LARGEST_GRADIENT = 1000.0


@dataclasses.dataclass(frozen=True)
class Config:
    hidden: int = 128  # of the LSTM; the published VeLO has 512
    bank: int = 64  # networks that are mixed; the published VeLO has 256
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
    recurrent: LSTMState  # a row for each tensor, in the order of jax.tree.leaves
    losses: features.Losses


def build(config: Config = Config()) -> Learned:
    """Returns the VeLO optimizer.

    For each tensor, an LSTM reads the fraction of training done, how the loss falls and
    statistics of the tensor, and gives a step size s and controls c; for each parameter
    with 30 normalized channels f,

        weights = 100 mean_n(c_n bank_n),   (d, a) = network(f)
        p <- p - step_multiplier * s * rms(p) * d * exp(exp_multiplier * a)

    It needs ``num_steps`` and reads ``value``. All tensors see each other, so a mask or a
    partition changes the updates of the others. A tensor of zeros hardly moves, because
    steps are relative. Memory: four float32 copies of the parameters, plus rows and
    columns. Beyond ``num_steps`` it goes on with the features of a training that is over.

    Departures from the reference: what nothing reads is left out (a third output, a third
    mixing layer); a loss that is not finite is not entered and a gradient that is not a
    number counts as zero, where there all parameters would be lost for ever.

    Raises:
      ValueError: from ``bind``, without ``num_steps`` or for one below 1.
    """

    def init(key: Key) -> Theta:
        k_bank, k_recurrent = jax.random.split(key)
        heads = {"controls": config.bank, "step_size": 1}
        return {
            "bank": jax.vmap(lambda key: mlp.init(key, SIZES))(jax.random.split(k_bank, config.bank)),
            **recurrent.init(k_recurrent, NUM_INPUTS, config.hidden, heads),
        }

    def bind(theta: Theta, num_steps=None):
        if num_steps is None:
            raise ValueError("velo looks at the fraction of training done: pass num_steps=")
        check_num_steps(num_steps)
        longest = 10 if config.bugged_loss_features else num_steps

        def init_state(params):
            num_tensors = len(jax.tree.leaves(params))
            return State(
                jnp.zeros((), jnp.int32),
                init_moments(params, DECAYS),
                recurrent.start(theta, num_tensors),
                features.init_losses(),
            )

        def update(grads, state, params, value):
            if not jax.tree.leaves(params):  # one of several labels may have no parameters
                return params, state
            grads = jax.tree.map(clean, grads)
            progress, losses = features.loss_features(state.losses, value, longest)
            shared = jnp.concatenate([features.fraction_features(state.step, num_steps), progress])
            seen = map_tensors(lambda p, m: jnp.concatenate([shared, statistics(p, m)]), state.moments, params)
            rows = recurrent.step(theta, jnp.stack(jax.tree.leaves(seen)), state.recurrent)
            sizes = recurrent.dense(theta["step_size"], rows.hidden)[:, 0]
            mixed = mix(theta["bank"], recurrent.dense(theta["controls"], rows.hidden))
            moments = update_moments(_after(sizes), state.moments, grads)

            def tensor(p, g, i, moments):
                scale = config.step_multiplier * sizes[i]
                if config.relative:
                    scale = scale * per_parameter.root_mean_square(p)
                step = lambda d, a: -scale * d * jnp.exp(config.exp_multiplier * a)
                weights = jax.tree.map(lambda w: w[i], mixed)
                return per_parameter.apply(weights, channels.velo, channels.tensor_inputs(p, g, moments), step)

            index = jax.tree.unflatten(jax.tree.structure(params), range(len(sizes)))
            updates = map_tensors(tensor, moments, params, grads, index)
            kept = state.recurrent if config.bugged_lstm_state else rows
            return updates, State(state.step + 1, moments, kept, losses)

        return rule.transformation(init_state, update, name="velo", needs_value=True)

    return Learned(init, bind)


def check_num_steps(num_steps) -> None:
    if isinstance(num_steps, int) and num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")


def clean(g: jax.Array) -> jax.Array:
    """Gradients clipped element by element; what is not a number counts as zero."""
    return jnp.clip(jnp.where(jnp.isnan(g), 0.0, g), -LARGEST_GRADIENT, LARGEST_GRADIENT)


def statistics(p: jax.Array, moments: Moments) -> jax.Array:
    """(12,) what the LSTM sees of one tensor: its accumulators before the current gradient.

    In units of the parameters' root mean square k, with v the second moment and m the
    momenta: log mean(k v), the rank one-hot, log var(k m), log mean((k v - mean(k m))^2).
    The last, and k instead of k^2 before v, are slips that published weights rely on.
    """
    if not p.size:
        return jnp.zeros(NUM_STATISTICS)
    (rms,) = moments.rms
    over = lambda f: [mean.ravel()[0] for mean in tiling.means(f, (p, moments.momentum, rms), p.shape)]
    square, mean_rms, *means = over(lambda x: [x[0] * x[0], x[2], *x[1]])
    from_own_mean = lambda x: [(m - mean) ** 2 for m, mean in zip(x[1], means, strict=True)]
    variances = over(lambda x: [*from_own_mean(x), *[(x[2] - mean) ** 2 for mean in means]])
    unit = jax.lax.rsqrt(jnp.maximum(1e-9, square))
    log = lambda x: 0.5 * jnp.clip(jnp.log(1e-8 + jnp.abs(10.0 * x)), -5.0, 5.0)
    rank = jax.nn.one_hot(sum(size > 1 for size in p.shape), NUM_RANKS)
    return jnp.concatenate([log(unit * mean_rms)[None], rank, log(unit**2 * jnp.stack(variances))])


def _after(sizes: jax.Array) -> Decays:
    """DECAYS, but known only when the step sizes are.

    They come from the old accumulators, which are then no longer needed. Where the compiler
    cannot see that, it copies all of them before it overwrites them.
    """
    nothing = jnp.where(jnp.any(sizes > jnp.inf), 1.0, 0.0)
    return jax.tree.map(lambda b: b + nothing, DECAYS)


def mix(bank: Theta, controls: jax.Array) -> Theta:
    """``100 mean_n(controls_tn bank_n)``: the weights of each tensor t, stacked."""
    return jax.tree.map(lambda w: 100.0 / len(w) * jnp.tensordot(controls, w, axes=1), bank)
