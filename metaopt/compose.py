"""Gradient clipping, muP, weight decay and a schedule around any optimizer, in a fixed order."""

from typing import Any

import jax
import optax

from metaopt import mup
from metaopt.core import Params


def compose(
    tx: optax.GradientTransformation,
    *,
    clip: float | None = None,
    multipliers: Any = None,
    weight_decay: float | jax.Array = 0.0,
    decay_mask: Any = None,
    schedule: optax.Schedule | None = None,
    pylo_decay: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer whose updates are added to the parameters.

        p <- p + schedule(t) * (multipliers * tx(clip(g)) - weight_decay * p)

    Clipping comes first, so that accumulators average clipped gradients. The decay is decoupled: it
    neither enters the accumulators nor changes with width. The schedule is a factor, 1 for the step
    size that ``tx`` has by itself, and comes last: it scales the decay too.
    ``optax.add_decayed_weights`` has the other sign: after an optimizer it would make weights grow.

    A parameter without a gradient (None) still decays, unless ``decay_mask`` leaves it out. With
    ``multipliers`` the result cannot be used inside ``optax.masked``, where the trees differ.

    Args:
      tx: an optimizer, e.g. ``metaopt.load(name)`` or ``optax.adam(rate)``.
      clip: largest global norm of the gradients; None for no clipping.
      multipliers: tree of muP multipliers like the parameters, see ``metaopt.mup``.
      weight_decay: fraction by which weights shrink in a step, i.e. including the learning rate.
      decay_mask: tree of bools like the parameters, true for those that decay, or a function from
        the parameters to it; None for all.
      schedule: function from the step t = 0, 1, ... to a factor.
      pylo_decay: whether weights decay as in PyLO, after the update and by the multiplier too:
        p <- (1 - multiplier * weight_decay) * (p + multiplier * update).

    Returns:
      An Optax transformation that passes extra arguments such as ``value`` on to ``tx``.

    Raises:
      ValueError: for a negative ``clip`` or ``weight_decay``.
    """
    for name, value in (("clip", clip), ("weight_decay", weight_decay)):
        if isinstance(value, int | float) and value < 0:  # a learned decay is an array, and not checked
            raise ValueError(f"{name} must not be negative, got {value}")
    chain = [] if clip is None else [optax.clip_by_global_norm(clip)]
    chain.append(tx)
    if multipliers is not None:
        chain.append(mup.scale_updates(multipliers))
    if pylo_decay:
        chain.append(_decay_after_update(weight_decay, multipliers, decay_mask))
    elif not isinstance(weight_decay, int | float) or weight_decay:
        chain.append(optax.add_decayed_weights(-weight_decay, decay_mask))
    if schedule is not None:
        chain.append(optax.scale_by_schedule(schedule))
    return optax.with_extra_args_support(optax.chain(*chain))


def _decay_after_update(weight_decay: Any, multipliers: Any, mask: Any) -> optax.GradientTransformation:
    """Shrinks the parameters as they are after the update."""

    def decay_tensor(u: jax.Array, p: jax.Array, multiplier: Any, decays: Any) -> jax.Array:
        return u - (decays * multiplier * weight_decay * (p + u)).astype(u.dtype)

    def decay(updates: Params, params: Params) -> Params:
        scales = jax.tree.map(lambda p: 1.0, params) if multipliers is None else multipliers
        if mask is None:
            decays = jax.tree.map(lambda p: True, params)
        else:
            decays = mask(params) if callable(mask) else mask
        return jax.tree.map(decay_tensor, updates, params, scales, decays)

    return optax.stateless(decay)
