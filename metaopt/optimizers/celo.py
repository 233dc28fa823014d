"""Celo: one learned rule for all tensors, and one LSTM that schedules its step size.

Source: Moudgil et al., "Celo: Training versatile learned optimizers on a compute diet",
arXiv:2501.12670; amoudgl/celo.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metaopt.core import Key, Learned, Theta
from metaopt.nn import mlp
from metaopt.nn.lstm import LSTMState
from metaopt.optimizers.common import channels, features, per_parameter, recurrent, rule
from metaopt.optimizers.common.features import FRACTIONS, NUM_LOSS_SCALES
from metaopt.optimizers.common.moments import Moments, init_moments, map_tensors, update_moments
from metaopt.optimizers.velo import DECAYS, SIZES, check_num_steps, clean

RULES = ("mlp", "adam")
NUM_INPUTS = len(FRACTIONS) + NUM_LOSS_SCALES - 1
LARGEST_RATIO = 0.1  # the scheduler's multiplier is this times an exponential


@dataclasses.dataclass(frozen=True)
class Config:
    rule: str = "mlp"  # what is scheduled: a per-parameter network, or Adam (Celo-Adam)
    hidden: int = 64  # of the LSTM
    scheduled: bool = True  # without, the first phase of Celo's meta-training
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
    moments: Moments | optax.OptState  # of the network, or Adam's
    recurrent: LSTMState | tuple  # one row, whatever the number of tensors; () if not scheduled
    losses: features.Losses | tuple


def build(config: Config = Config()) -> Learned:
    """Returns the Celo optimizer.

    An LSTM that reads the fraction of training done and how the loss falls gives one
    multiplier u = exp(w h + b) / 10; for each parameter with 30 normalized channels f,

        (d, a) = network(f),   p <- p - step_multiplier * u * rms(p) * d * exp(exp_multiplier * a)

    or, with ``rule="adam"`` (Celo-Adam), p <- p - step_multiplier * u * m / (sqrt(v + 1e-10) + 1e-8).

    Scheduled, it needs ``num_steps`` and reads ``value``. A tensor of zeros hardly moves
    under the network, because steps are relative. Memory: four float32 copies of the
    parameters, plus rows and columns; two with Adam.

    The reference keeps the LSTM's state for each tensor, though all are equal. For what is
    not finite, see ``velo``.

    Raises:
      ValueError: from ``bind``, if it is scheduled and without ``num_steps``.
    """

    adam = optax.scale_by_adam(0.9, 0.999, eps=1e-8, eps_root=1e-10)

    def init(key: Key) -> Theta:
        k_network, k_scheduler = jax.random.split(key)
        theta = {}
        if config.rule == "mlp":
            theta["network"] = mlp.init(k_network, SIZES)
        if config.scheduled:
            theta["scheduler"] = recurrent.init(k_scheduler, NUM_INPUTS, config.hidden, {"step_size": 1})
        return theta

    def bind(theta: Theta, num_steps: Any = None):
        if config.scheduled and num_steps is None:
            raise ValueError("celo looks at the fraction of training done: pass num_steps=")
        check_num_steps(num_steps)

        def init_state(params):
            moments = init_moments(params, DECAYS) if config.rule == "mlp" else adam.init(params)
            if not config.scheduled:
                return State(jnp.zeros((), jnp.int32), moments, (), ())
            scheduler = recurrent.start(theta["scheduler"], 1)
            return State(jnp.zeros((), jnp.int32), moments, scheduler, features.init_losses())

        def schedule(state, value) -> tuple[jax.Array | float, Any, Any]:
            if not config.scheduled:
                return 1.0, (), ()
            progress, losses = features.loss_features(state.losses, value, num_steps)
            seen = jnp.concatenate([features.fraction_features(state.step, num_steps), progress])
            row = recurrent.step(theta["scheduler"], seen[None], state.recurrent)
            (exponent,) = recurrent.dense(theta["scheduler"]["step_size"], row.hidden)[0]
            return LARGEST_RATIO * jnp.exp(exponent), row, losses

        def update(grads, state, params, value):
            grads = jax.tree.map(clean, grads)
            multiplier, row, losses = schedule(state, value)
            scale = config.step_multiplier * multiplier

            def tensor(p, g, moments):
                size = scale * per_parameter.root_mean_square(p)
                step = lambda d, a: -size * d * jnp.exp(config.exp_multiplier * a)
                return per_parameter.apply(theta["network"], channels.velo, channels.tensor_inputs(p, g, moments), step)

            if config.rule == "adam":
                direction, moments = adam.update(grads, state.moments)
                updates = jax.tree.map(lambda d: -scale * d, direction)
            else:
                moments = update_moments(DECAYS, state.moments, grads)
                updates = map_tensors(tensor, moments, params, grads)
            return updates, State(state.step + 1, moments, row, losses)

        return rule.transformation(init_state, update, name="celo", needs_value=config.scheduled)

    return Learned(init, bind)
