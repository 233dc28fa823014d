"""The number of steps to reach a target loss."""

import numpy as np


def steps_to(losses: np.ndarray, steps: np.ndarray, target: float) -> np.ndarray:
    """The first step of two consecutive evaluations with a loss of at most ``target``.

    Two evaluations are required to exclude chance; at the last evaluation one is enough.

    Args:
      losses: (..., num_points).
      steps: (num_points,) steps at which the losses were measured.
      target: target loss.

    Returns:
      (...) steps, infinity if the target was not reached. A loss that is NaN does not reach it.
    """
    below = losses <= target
    confirmed = below & np.concatenate([below[..., 1:], below[..., -1:]], axis=-1)
    return np.where(confirmed.any(axis=-1), steps[confirmed.argmax(axis=-1)], np.inf)
