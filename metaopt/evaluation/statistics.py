"""Medians with bootstrap intervals. Infinite values are results like others."""

from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 2000  # number of bootstrap samples


def median(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """The lower median, which is one of the values: a mean of a finite and an infinite value cannot occur."""
    return np.quantile(values, 0.5, axis=axis, method="lower")


def bootstrap(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile-bootstrap interval (low, high) of the median of independent values.

    The coverage is close to ``level`` for ten values or more.
    """
    draws = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    return _interval(median(values[draws]), level)


def bootstrap_tasks(
    values: Sequence[np.ndarray], aggregate: Callable[[np.ndarray], float], level: float = 0.95
) -> tuple[float, float]:
    """Bootstrap interval (low, high) for tasks like these: resamples tasks, then the values of each.

    Args:
      values: (num_seeds,) independent values for each task.
      aggregate: function of the (num_tasks,) medians, whose interval is computed.
      level: coverage of the interval.
    """
    rng, samples = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        chosen = rng.integers(0, len(values), len(values))
        samples.append(aggregate(np.array([median(rng.choice(values[i], len(values[i]))) for i in chosen])))
    return _interval(np.array(samples), level)


def _interval(samples: np.ndarray, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low = np.quantile(samples, tail, method="lower")
    high = np.quantile(samples, 1 - tail, method="higher")
    return float(low), float(high)
