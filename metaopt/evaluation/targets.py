"""When a run reached a loss."""

import numpy as np


def steps_to(losses: np.ndarray, steps: np.ndarray, target: float) -> np.ndarray:
    """First step of two consecutive evaluations at or below ``target``.

    Asking for two keeps lucky crossings out; at the last evaluation one is enough.

    Args:
      losses: (..., num_points).
      steps: (num_points,) at which they were measured.
      target: a loss.

    Returns:
      (...) steps, infinite where the target was missed. NaN counts as a miss.
    """
    below = losses <= target
    confirmed = below & np.concatenate([below[..., 1:], below[..., -1:]], axis=-1)
    return np.where(confirmed.any(axis=-1), steps[confirmed.argmax(axis=-1)], np.inf)
