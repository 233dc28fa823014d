"""hand: hand-written optimizers whose hyper-parameters are meta-parameters.

Tuning is meta-training too: the same contract, estimators and checkpoints as for a
learned optimizer, with Optax computing the update.
"""

import dataclasses
import math
from collections.abc import Hashable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metaopt.core import Key, Learned, Params, PyTree, Theta
from metaopt.errors import unknown
from metaopt.optimizers.common import rule

EPS_ROOT = 1e-20  # under Adam's square root, whose derivative is infinite for a parameter that never had a gradient
RULES = ("sgd", "momentum", "adam", "adamw")


@dataclasses.dataclass(frozen=True)
class Config:
    rule: str = "adam"
    learning_rate: float = 1e-3  # initial value, as for all that is learned
    momentum: float = 0.9  # momentum, or Adam's decay of the first moment
    second_decay: float = 0.999  # Adam's decay of the second moment
    eps: float = 1e-8
    weight_decay: float = 1e-4  # decoupled; adamw only
    schedule_knots: int = 0  # > 0 learns a schedule over the fraction of num_steps
    decay_steps: int = 0  # > 0 learns the power of a decay that begins after about this many steps
    num_tensors: int = 0  # > 0 learns separate hyper-parameters for each tensor of the parameters
    fixed: str = ""  # entries of theta that keep their initial value and are not learned, comma separated

    def __post_init__(self):
        if self.rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}, got {self.rule!r}")
        if self.schedule_knots == 1 or self.schedule_knots < 0:
            raise ValueError(f"schedule_knots must be 0 or at least 2, got {self.schedule_knots}")
        for name in ("decay_steps", "num_tensors"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in self.fixed_names:
            if name not in _initial_theta(self):
                raise unknown("entry of theta", name, _initial_theta(self))

    @property
    def fixed_names(self) -> list[str]:
        """Names of the entries of theta that are not learned."""
        return self.fixed.split(",") if self.fixed else []


def build(config: Config = Config()) -> Learned:
    """Returns a hand-written optimizer in unconstrained coordinates.

    Learning rate, eps and weight decay are learned as logarithms, a decay b as
    log(1 - b); for the learning rate of a step see ``learning_rate``.

    An entry of a gradient that is NaN, infinite or larger than 1e14 counts as zero, which Optax does
    not do by itself.

    With ``num_tensors`` every entry of theta has a leading axis over the tensors of the
    parameters, in the order of ``jax.tree.leaves``; each has an optimizer of its own.

    Raises:
      ValueError: from ``bind``, if there is a schedule and no ``num_steps``; from the
        optimizer's ``init``, if the parameters are not ``num_tensors`` tensors.
    """
    initial = _initial_theta(config)
    fixed = {name: initial[name] for name in config.fixed_names}
    learned = {name: x for name, x in initial.items() if name not in fixed}

    def init(key: Key) -> Theta:
        del key
        leading = (config.num_tensors,) if config.num_tensors else ()
        return {name: jnp.full((*leading, *x.shape), x) for name, x in learned.items()}

    def bind(theta: Theta, num_steps: jax.Array | int | None = None) -> optax.GradientTransformationExtraArgs:
        if config.schedule_knots and num_steps is None:
            raise ValueError("a learned schedule needs the length of training: pass num_steps=")
        if config.num_tensors:
            by_label: dict[Hashable, optax.GradientTransformation] = {}
            for i in range(config.num_tensors):
                of_tensor = fixed | {name: x[i] for name, x in theta.items()}
                by_label[f"tensor {i}"] = _optax(config, of_tensor, num_steps)
            tx = optax.partition(by_label, lambda params: _labels(params, list(by_label)))
        else:
            tx = _optax(config, fixed | theta, num_steps)

        def update(
            grads: Params, state: optax.OptState, params: Params, value: jax.Array | None
        ) -> tuple[Params, optax.OptState]:
            del value
            return tx.update(grads, state, params)

        return rule.transformation(tx.init, update, name=f"hand ({config.rule})")

    return Learned(init, bind)


def learning_rate(
    config: Config, theta: Theta, step: jax.Array | np.ndarray | int, num_steps: jax.Array | int | None = None
) -> jax.Array:
    """The learning rate of a step t = 0, 1, ... of T = ``num_steps``.

        exp(log_learning_rate + interpolate(s, t / T)) / (1 + t / Q)^p

    with s the schedule's values at ``schedule_knots`` equally spaced knots, if there are any, and p
    the power of a decay that begins after about Q = ``decay_steps`` steps, if Q > 0. Beyond T the
    schedule keeps its last value.

    Source: Vicol et al., arXiv:2112.13835 (the decay).
    """
    log_rate = theta["log_learning_rate"]
    if config.schedule_knots:
        fraction = jnp.clip(step / jnp.asarray(num_steps, jnp.float32), 0.0, 1.0)
        log_rate = log_rate + jnp.interp(fraction, jnp.linspace(0.0, 1.0, config.schedule_knots), theta["schedule"])
    if config.decay_steps:
        log_rate = log_rate - theta["decay"] * jnp.log1p(step / config.decay_steps)
    return jnp.exp(log_rate)


def _initial_theta(config: Config) -> dict[str, np.ndarray]:
    """The initial meta-parameters of one optimizer."""
    theta: dict[str, float | list[float]] = {"log_learning_rate": math.log(config.learning_rate)}
    if config.rule != "sgd":
        theta["log_one_minus_momentum"] = math.log1p(-config.momentum)
    if config.rule in ("adam", "adamw"):
        theta["log_one_minus_second_decay"] = math.log1p(-config.second_decay)
        theta["log_eps"] = math.log(config.eps)
    if config.rule == "adamw":
        theta["log_weight_decay"] = math.log(config.weight_decay)
    if config.schedule_knots:
        theta["schedule"] = [0.0] * config.schedule_knots
    if config.decay_steps:
        theta["decay"] = 0.0
    return {name: np.asarray(value, np.float32) for name, value in theta.items()}


def _optax(config: Config, theta: Theta, num_steps: jax.Array | int | None) -> optax.GradientTransformation:
    """One optimizer with its hyper-parameters."""
    transformations = []
    if config.rule in ("adam", "adamw"):
        eps = jnp.exp(theta["log_eps"])
        transformations.append(
            optax.scale_by_adam(_decay(theta, "momentum"), _decay(theta, "second_decay"), eps, EPS_ROOT)
        )
    elif config.rule == "momentum":
        transformations.append(optax.trace(_decay(theta, "momentum")))
    if config.rule == "adamw":
        transformations.append(optax.add_decayed_weights(jnp.exp(theta["log_weight_decay"])))
    rate = lambda step: learning_rate(config, theta, step, num_steps)
    return optax.chain(*transformations, optax.scale_by_learning_rate(rate))


def _decay(theta: Theta, name: str) -> jax.Array:
    return 1.0 - jnp.exp(theta[f"log_one_minus_{name}"])


def _labels(params: Params, labels: list[Hashable]) -> PyTree:
    """The labels as a tree like the parameters."""
    tree = jax.tree.structure(params)
    if tree.num_leaves != len(labels):
        raise ValueError(
            f"hand has hyper-parameters for {len(labels)} tensors and the parameters are {tree.num_leaves}: "
            f"set num_tensors={tree.num_leaves}, or 0 to share one set"
        )
    return tree.unflatten(labels)
