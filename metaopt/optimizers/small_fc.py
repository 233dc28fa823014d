"""small_fc: a tiny per-parameter network that reads Adafactor-like features.

Source: Metz et al., "Practical tradeoffs between memory, compute, and performance
in learned optimizers", arXiv:2203.11860; AdafacMLPLOpt in
google/learned_optimization, learned_optimizers/adafac_mlp_lopt.py.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaopt.core import Key, LearnedOptimizer, Params, PyTree, Theta
from metaopt.optimizers import features, rule
from metaopt.optimizers.accumulators import ema, init_factored, preconditioners, update_factored

MOMENTUM_DECAYS = (0.9, 0.99, 0.999)
RMS_DECAYS = (0.999,)
FACTORED_DECAYS = (0.9, 0.99, 0.999)
NUM_CHANNELS = 28
SMALLEST_RMS = 0.03  # relative steps treat smaller tensors, e.g. zero biases, as this large


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
    momentum: tuple[Params, ...]  # one tree per decay, float32
    rms: tuple[Params, ...]  # second moment, not rooted
    factored: tuple[PyTree, ...]  # Factored or an array in place of each parameter


def decays(initial: tuple[float, ...], offset: jax.Array) -> jax.Array:
    """``1 - (1 - initial) * exp(10 * offset)``: an offset of zero is the initial decay."""
    return 1.0 - (1.0 - jnp.array(initial)) * jnp.exp(10.0 * offset)


def channels(p, g, momentum, rms, factored) -> list[jax.Array]:
    """The 28 channels of one tensor, from the updated accumulators, before normalising.

    Row and column statistics keep size 1 on the axis they are averaged over.
    """
    rsqrt = jax.lax.rsqrt
    inverse_root = [rsqrt(r + 1e-6) for r in rms]
    scaled = lambda x, factors: x * factors[0] if len(factors) == 1 else x * factors[0] * factors[1]
    factors = [preconditioners(f, g.shape) for f in factored]
    if g.ndim >= 2:
        rows, cols = [f.row for f in factored], [f.col for f in factored]
        preconditioned = [scaled(m, f) for m, f in zip(momentum, factors, strict=True)]
    else:
        rows = cols = list(factored)
        preconditioned = [m * rsqrt(f + 1e-6) for m, f in zip(momentum, factored, strict=True)]
    return [
        g,
        p,
        *momentum,
        *rms,
        *[m * s for m in momentum for s in inverse_root],
        *inverse_root,
        *[scaled(g, f) for f in factors],
        *rows,
        *cols,
        *[rsqrt(r + 1e-8) for r in rows],
        *[rsqrt(c + 1e-8) for c in cols],
        *preconditioned,
    ]


def build(config: Config = Config()) -> LearnedOptimizer:
    """Returns the small_fc optimizer (AdafacMLPLOpt).

    For each parameter, with 28 normalised channels f, 11 time features e and a
    network of two hidden layers,

        (d, a) = network(f, e),   p <- p - step_multiplier * d * exp(exp_multiplier * a)

    Meta-parameters: the network and the decays of the accumulators. Memory: four
    float32 copies of the parameters, plus rows and columns. It does not read
    ``value``. With ``relative`` the step is multiplied by max(rms(p), 0.03) of its
    tensor; with ``schedule`` by exp(s . (e, u)), s learned and u nine features of the
    fraction of ``num_steps`` that is done.

    Raises:
      ValueError: from ``bind``, with ``schedule`` and without ``num_steps``.
    """

    def init(key: Key) -> Theta:
        sizes = (NUM_CHANNELS + len(features.TIME_SCALES), config.hidden, config.hidden, 2)
        theta = {
            "momentum_decays": jnp.zeros(len(MOMENTUM_DECAYS)),
            "rms_decays": jnp.zeros(len(RMS_DECAYS)),
            "factored_decays": jnp.zeros(len(FACTORED_DECAYS)),
            "network": features.init_network(key, sizes),
        }
        if config.schedule:
            theta["schedule"] = jnp.zeros(len(features.TIME_SCALES) + len(features.FRACTIONS))
        return theta

    def bind(theta: Theta, num_steps=None):
        if config.schedule and num_steps is None:
            raise ValueError("this small_fc has a learned schedule and needs the length of training: pass num_steps=")
        b_momentum = decays(MOMENTUM_DECAYS, theta["momentum_decays"])
        b_rms = jnp.clip(decays(RMS_DECAYS, theta["rms_decays"]), 0.0, 1.0)
        b_factored = decays(FACTORED_DECAYS, theta["factored_decays"])

        def init_state(params):
            zeros = lambda _: jax.tree.map(jnp.zeros_like, params)
            return State(
                jnp.zeros((), jnp.int32),
                tuple(map(zeros, MOMENTUM_DECAYS)),
                tuple(map(zeros, RMS_DECAYS)),
                tuple(jax.tree.map(init_factored, params) for _ in FACTORED_DECAYS),
            )

        def update(grads, state, params, value):
            del value
            average = lambda b, old, new: jax.tree.map(lambda o, n: ema(b, o, n), old, new)
            squares = jax.tree.map(lambda g: g * g, grads)
            momentum = tuple(average(b, m, grads) for b, m in zip(b_momentum, state.momentum, strict=True))
            rms = tuple(average(b, r, squares) for b, r in zip(b_rms, state.rms, strict=True))
            factored = tuple(
                jax.tree.map(lambda g, f, b=b: update_factored(b, f, g), grads, old)
                for b, old in zip(b_factored, state.factored, strict=True)
            )
            time = features.time_features(state.step)
            scale = config.step_multiplier
            if num_steps is not None and config.schedule:
                moment = jnp.concatenate([time, features.fraction_features(state.step, num_steps)])
                scale = scale * jnp.exp(theta["schedule"] @ moment)

            def leaf(p, g, *accumulators):
                num_m, num_r = len(momentum), len(rms)
                m, r, f = accumulators[:num_m], accumulators[num_m : num_m + num_r], accumulators[num_m + num_r :]
                unit = jnp.maximum(jnp.sqrt(jnp.mean(p * p)), SMALLEST_RMS) if config.relative else 1.0
                inputs = channels(p, g, m, r, f)
                return features.learned_step(
                    theta["network"], inputs, time, p.shape, scale * unit, config.exp_multiplier
                )

            updates = jax.tree.map(leaf, params, grads, *momentum, *rms, *factored)
            return updates, State(state.step + 1, momentum, rms, factored)

        return rule.transformation(init_state, update, name="small_fc")

    return LearnedOptimizer(init, bind)
