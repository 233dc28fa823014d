"""Celo: one per-parameter network for all tensors, and one LSTM that schedules its step size.

Source: Moudgil et al., "Celo: Training versatile learned optimizers on a compute diet",
arXiv:2501.12670; amoudgl/celo.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metaopt.core import Key, Learned, Params, Theta
from metaopt.nn import dense, mlp
from metaopt.optimizers.common import channels, features, per_parameter, recurrent, rule
from metaopt.optimizers.common.features import NUM_PROGRESS_FEATURES
from metaopt.optimizers.common.gradients import clip_and_zero_nan
from metaopt.optimizers.common.moments import init_moments, update_moments
from metaopt.optimizers.common.trees import each, from_tensors
from metaopt.optimizers.common.velo_network import DECAYS, LAYER_SIZES

RULES = ("mlp", "adam")
MULTIPLIER_SCALE = 0.1  # the scheduler's multiplier is this times an exponential


@dataclasses.dataclass(frozen=True)
class Config:
    rule: str = "mlp"  # the scheduled rule: a per-parameter network, or "adam" (Celo-Adam)
    hidden: int = 64  # units of the LSTM
    scheduled: bool = True  # False for the first phase of Celo's meta-training
    step_multiplier: float = 1e-3  # scales the whole update
    exp_multiplier: float = 1e-3  # range of the learned log step size

    def __post_init__(self):
        if self.rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}, got {self.rule!r}")
        if self.hidden < 1:
            raise ValueError(f"hidden must be at least 1, got {self.hidden}")
        if self.rule == "adam" and not self.scheduled:
            raise ValueError("rule=adam without its schedule has nothing to learn: leave scheduled=True")


class State(NamedTuple):
    step: jax.Array  # () int32
    moments: Any  # Moments of the network, or the state of optax.scale_by_adam
    recurrent: Any  # LSTMState (1, hidden), whatever the number of tensors; () if not scheduled
    losses: Any  # features.Losses; () if not scheduled


def build(config: Config = Config()) -> Learned:
    """Returns the Celo optimizer.

    An LSTM that reads the fraction of training done and how the loss falls gives one
    multiplier u = exp(w h + b) / 10; for each parameter with 30 normalized channels f,

        (d, a) = network(f),   p <- p - step_multiplier * u * rms(p) * d * exp(exp_multiplier * a)

    or, with ``rule="adam"`` (Celo-Adam), p <- p - step_multiplier * u * m / (sqrt(v + 1e-10) + 1e-8).

    Scheduled, it needs ``num_steps`` and reads ``value``. A tensor of zeros hardly moves
    under the network, because steps are relative. Memory: four float32 copies of the
    parameters, plus row and column means; two with Adam. Beyond ``num_steps`` it continues with the
    features of a training that is complete.

    Departures from the reference: one LSTM state, where it keeps one for each tensor though all
    are equal; a loss that is not finite is skipped and a NaN in a gradient counts as zero. As there,
    the other entries of a gradient, infinite ones too, are clipped to +-1000.

    Raises:
      ValueError: from ``bind``, if it is scheduled and without ``num_steps``.
    """

    adam = optax.scale_by_adam(0.9, 0.999, eps=1e-8, eps_root=1e-10)

    def init(key: Key) -> Theta:
        k_network, k_scheduler = jax.random.split(key)
        theta = {}
        if config.rule == "mlp":
            theta["network"] = mlp.init(k_network, LAYER_SIZES)
        if config.scheduled:
            theta["scheduler"] = recurrent.init(k_scheduler, NUM_PROGRESS_FEATURES, config.hidden, {"step_size": 1})
        return theta

    def bind(theta: Theta, num_steps: jax.Array | int | None = None) -> optax.GradientTransformationExtraArgs:
        if config.scheduled and num_steps is None:
            raise ValueError("celo looks at the fraction of training done: pass num_steps=")

        def init_state(params: Params) -> State:
            moments = init_moments(params, DECAYS) if config.rule == "mlp" else adam.init(params)
            if not config.scheduled:
                return State(jnp.zeros((), jnp.int32), moments, (), ())
            lstm_state = recurrent.initial_state(theta["scheduler"], 1)
            return State(jnp.zeros((), jnp.int32), moments, lstm_state, features.init_losses())

        def schedule(state: State, value: Any) -> tuple[jax.Array | float, Any, Any]:
            """The multiplier of the step size, the new LSTM state and the new running means of the loss."""
            if not config.scheduled or num_steps is None:
                return 1.0, (), ()
            progress, losses = features.progress_features(state.step, num_steps, state.losses, value, num_steps)
            lstm_state = recurrent.step(theta["scheduler"], progress[None], state.recurrent)
            (exponent,) = dense.apply(theta["scheduler"]["step_size"], lstm_state.hidden)[0]
            return MULTIPLIER_SCALE * jnp.exp(exponent), lstm_state, losses

        def update(grads: Params, state: State, params: Params, value: Any) -> tuple[Params, State]:
            grads = jax.tree.map(clip_and_zero_nan, grads)
            multiplier, lstm_state, losses = schedule(state, value)
            scale = config.step_multiplier * multiplier

            def network(unit: jax.Array, inputs: list[jax.Array], shape: tuple[int, ...]) -> jax.Array:
                direction, log_size = mlp.apply(theta["network"], inputs, shape)
                return per_parameter.step(direction, log_size, scale * unit, config.exp_multiplier)

            if config.rule == "adam":
                direction, moments = adam.update(grads, state.moments)
                updates = jax.tree.map(lambda d: -scale * d, direction)
            else:
                moments = update_moments(DECAYS, state.moments, grads)
                inputs = channels.all_inputs(params, grads, moments)
                units = [each(lambda x: per_parameter.root_mean_square(x.param), x) for x in inputs]
                updates = from_tensors(per_parameter.apply(network, channels.velo, inputs, units), params, params)
            return updates, State(state.step + 1, moments, lstm_state, losses)

        return rule.transformation(
            init_state, update, name="celo", needs_value=config.scheduled, largest_gradient=jnp.inf, stacks=True
        )

    return Learned(init, bind)
