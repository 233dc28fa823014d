"""Medians with bootstrap intervals. Infinities are results and stay in."""

from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 2000


def median(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """The lower median: a value that occurs, so infinity never meets a finite one."""
    return np.quantile(values, 0.5, axis=axis, method="lower")


def bootstrap(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile-bootstrap interval of the median of independent runs.

    Ten runs or more are needed for a coverage near the nominal one.
    """
    draws = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    return _interval(median(values[draws]), level)


def bootstrap_tasks(
    runs: Sequence[np.ndarray], aggregate: Callable[[np.ndarray], float], level: float = 0.95
) -> tuple[float, float]:
    """Interval for tasks like these: tasks are resampled, then runs inside each.

    Args:
      runs: one array of results for each task.
      aggregate: (num_tasks,) medians -> the number of interest.
    """
    rng, samples = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        chosen = rng.integers(0, len(runs), len(runs))
        samples.append(aggregate(np.array([median(rng.choice(runs[i], len(runs[i]))) for i in chosen])))
    return _interval(np.array(samples), level)


def _interval(samples: np.ndarray, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low = np.quantile(samples, tail, method="lower")
    high = np.quantile(samples, 1 - tail, method="higher")
    return float(low), float(high)
