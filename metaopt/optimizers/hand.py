"""hand: hand-written optimizers whose hyper-parameters are meta-parameters.

Tuning is meta-training too: the same door, estimators and checkpoints as for a
network, with Optax doing the update.
"""

import dataclasses
import math

import jax.numpy as jnp
import optax

from metaopt.core import Key, LearnedOptimizer, Theta
from metaopt.optimizers import rule

RULES = ("sgd", "momentum", "adam", "adamw")


@dataclasses.dataclass(frozen=True)
class Config:
    rule: str = "adam"
    learning_rate: float = 1e-3  # where meta-training starts
    momentum: float = 0.9  # momentum, or the first decay of Adam
    second_decay: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 1e-4  # decoupled; adamw only
    schedule_knots: int = 0  # > 0 learns a schedule over the fraction of num_steps

    def __post_init__(self):
        if self.rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}, got {self.rule!r}")
        if self.schedule_knots == 1 or self.schedule_knots < 0:
            raise ValueError(f"schedule_knots must be 0 or at least 2, got {self.schedule_knots}")


def build(config: Config = Config()) -> LearnedOptimizer:
    """Returns a hand-written optimizer in unconstrained coordinates.

    Learning rate, eps and weight decay are learned as logarithms, a decay b as
    log(1 - b). With K schedule knots s, the learning rate at step t of T is

        exp(log_learning_rate + interpolate(s, t / T))

    and stays at its last value beyond T.

    Raises:
      ValueError: from ``bind``, if there is a schedule and no ``num_steps``.
    """
    has_momentum = config.rule != "sgd"
    is_adam = config.rule in ("adam", "adamw")

    def init(key: Key) -> Theta:
        del key
        theta = {"log_learning_rate": jnp.float32(math.log(config.learning_rate))}
        if has_momentum:
            theta["log_one_minus_momentum"] = jnp.float32(math.log1p(-config.momentum))
        if is_adam:
            theta["log_one_minus_second_decay"] = jnp.float32(math.log1p(-config.second_decay))
            theta["log_eps"] = jnp.float32(math.log(config.eps))
        if config.rule == "adamw":
            theta["log_weight_decay"] = jnp.float32(math.log(config.weight_decay))
        if config.schedule_knots:
            theta["schedule"] = jnp.zeros(config.schedule_knots)
        return theta

    def bind(theta: Theta, num_steps=None):
        if config.schedule_knots and num_steps is None:
            raise ValueError("a learned schedule needs the length of training: pass num_steps=")
        decay = lambda name: 1.0 - jnp.exp(theta[f"log_one_minus_{name}"])

        def learning_rate(step):
            log_rate = theta["log_learning_rate"]
            if config.schedule_knots:
                fraction = jnp.clip(step / jnp.asarray(num_steps, jnp.float32), 0.0, 1.0)
                knots = jnp.linspace(0.0, 1.0, config.schedule_knots)
                log_rate = log_rate + jnp.interp(fraction, knots, theta["schedule"])
            return jnp.exp(log_rate)

        parts = []
        if is_adam:
            parts.append(optax.scale_by_adam(decay("momentum"), decay("second_decay"), jnp.exp(theta["log_eps"])))
        elif has_momentum:
            parts.append(optax.trace(decay("momentum")))
        if config.rule == "adamw":
            parts.append(optax.add_decayed_weights(jnp.exp(theta["log_weight_decay"])))
        chain = optax.chain(*parts, optax.scale_by_learning_rate(learning_rate))

        def update(grads, state, params, value):
            del value
            return chain.update(grads, state, params)

        return rule.transformation(chain.init, update, name=f"hand ({config.rule})")

    return LearnedOptimizer(init, bind)
