"""Clipping, muP, weight decay and a schedule around any optimizer, in one order."""

from typing import Any

import jax
import optax

from metaopt import mup


def compose(
    tx: optax.GradientTransformation,
    *,
    clip: float | None = None,
    multipliers: Any = None,
    weight_decay: float = 0.0,
    decay_mask: Any = None,
    schedule: optax.Schedule | None = None,
    pylo_decay: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer whose updates are added to the parameters.

        p <- p + schedule(t) * (multipliers * tx(clip(g)) - weight_decay * p)

    Clipping comes first, as the accumulators should not see what is cut off. The decay is
    decoupled: it neither enters the accumulators nor changes with width. The schedule is a
    factor, 1 for what ``tx`` does by itself, and comes last: it scales the decay too.
    ``optax.add_decayed_weights`` has the other sign: after an optimizer it would make
    weights grow.

    A parameter that gets no gradient (None) still decays: leave it out of ``decay_mask``. With
    ``multipliers`` it cannot stand inside ``optax.masked``, where the trees differ.

    Args:
      tx: e.g. what ``metaopt.load`` returns, or ``optax.adam(rate)``.
      clip: largest global norm of the gradients.
      multipliers: a tree like the parameters, see ``metaopt.mup``.
      weight_decay: for each step, the learning rate included.
      decay_mask: a tree of bools like the parameters or a function that makes one: which decay.
      schedule: ``step t = 0, 1, ... -> factor``.
      pylo_decay: weights decay after they have moved, by the multiplier too, as PyLO's do:
        p <- (1 - multiplier * weight_decay) * (p + multiplier * update).

    Raises:
      ValueError: for a negative ``clip`` or ``weight_decay``.
    """
    for name, value in (("clip", clip), ("weight_decay", weight_decay)):
        if isinstance(value, int | float) and value < 0:  # what is learned is an array
            raise ValueError(f"{name} must not be negative, got {value}")
    parts = [] if clip is None else [optax.clip_by_global_norm(clip)]
    parts.append(tx)
    if multipliers is not None:
        parts.append(mup.scale_updates(multipliers))
    if pylo_decay:
        parts.append(_decay_what_moved(weight_decay, multipliers, decay_mask))
    elif not isinstance(weight_decay, int | float) or weight_decay:
        parts.append(optax.add_decayed_weights(-weight_decay, decay_mask))
    if schedule is not None:
        parts.append(optax.scale_by_schedule(schedule))
    return optax.with_extra_args_support(optax.chain(*parts))


def _decay_what_moved(weight_decay: float, multipliers: Any, mask: Any) -> optax.GradientTransformation:
    def decay(updates, params):
        everywhere = lambda value: jax.tree.map(lambda p: value, params)
        scales = everywhere(1.0) if multipliers is None else multipliers
        chosen = everywhere(True) if mask is None else mask(params) if callable(mask) else mask
        return jax.tree.map(
            lambda u, p, m, c: u - (c * m * weight_decay * (p + u)).astype(u.dtype), updates, params, scales, chosen
        )

    return optax.stateless(decay)
