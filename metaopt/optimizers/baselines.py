"""Hand-written optimizers to compare with, each tuned by its learning rate alone."""

import jax
import optax

from metaopt.families import Baseline


def half_decades(lowest: int, highest: int) -> tuple[float, ...]:
    """10^lowest, 10^(lowest + 1/2), ..., 10^highest."""
    return tuple(float(f"{10 ** (i / 2):.3g}") for i in range(2 * lowest, 2 * highest + 1))


def _cosine(rate: jax.Array, num_steps: int) -> optax.Schedule:
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, num_steps // 20, num_steps)
    return lambda step: rate * shape(step)  # Optax branches on the rate, which is traced here


# An evaluation that names no baselines takes the first three.
BASELINES = {
    "adamw": Baseline(lambda rate, num_steps: optax.adamw(rate), half_decades(-4, 0)),
    "sgdm": Baseline(lambda rate, num_steps: optax.sgd(rate, momentum=0.9), half_decades(-3, 1)),
    "lion": Baseline(lambda rate, num_steps: optax.lion(rate), half_decades(-5, -1)),
    "adamw-cosine": Baseline(lambda rate, num_steps: optax.adamw(_cosine(rate, num_steps)), half_decades(-4, 0)),
}
