"""Cosine between an estimate and the gradient of whole episodes, over the cost of the estimate.

The true gradient is the smoothed meta-gradient of full backpropagation, grad E_e L(theta + e),
averaged over many separate episodes. theta is fixed, each sample is one episode with its own
data, and k samples are averaged for k = 1, 2, 4, ...: the cosine of an unbiased estimator tends
to 1, that of a biased one to less.

A differentiated inner step costs more than an inner step of a member. So cost is time, measured
for each call while the estimators take turns, in units of the time that full ES needs for one
inner step of one member.
"""

import functools
import time
from typing import Any

import jax
import numpy as np

from meta_train.studies.estimator import estimates
from meta_train.studies.estimator.estimates import SIDE_BY_SIDE
from meta_train.studies.estimator.problems import Studied

ESTIMATORS = (
    "backprop",
    "dodge",
    "es",
    "es_gen",
    "es_single",
    "gpes",
    "pes",
    "pes_analytic",
    "tbptt",
    "truncated_es",
)
SMALLEST = 4  # smallest number of averages that a quantile is computed from


def study(studied: Studied, window: int, seconds: float, num_truth: int) -> dict[str, Any]:
    """Measures cosine and cost of all estimators.

    Args:
      studied: inner problem with its theta and sigma.
      window: inner steps of a window.
      seconds: time for each estimator.
      num_truth: number of further samples of backprop for the true gradient.

    Returns:
      JSON values; the cosines are those of ``convergence``.
    """
    draw = functools.partial(estimates.draw, studied=studied, window=window)
    for name in ESTIMATORS:
        draw(name, num=SIDE_BY_SIDE, key=jax.random.key(0))  # to compile
    drawn, times = {name: [] for name in ESTIMATORS}, {name: [] for name in ESTIMATORS}
    while waiting := [name for name in ESTIMATORS if sum(times[name]) < seconds]:
        for name in waiting:
            key = jax.random.fold_in(jax.random.key(ESTIMATORS.index(name)), len(times[name]))
            began = time.perf_counter()
            drawn[name].append(draw(name, num=SIDE_BY_SIDE, key=key).mean(axis=1))
            times[name].append(time.perf_counter() - began)
    truth = draw("backprop", num=num_truth, key=jax.random.key(len(ESTIMATORS))).mean(axis=1)
    halves = truth.reshape(2, num_truth // 2, -1).mean(axis=1)
    per_sample = {name: float(np.median(t)) / SIDE_BY_SIDE for name, t in times.items()}
    member_step = per_sample["es"] / (2 * studied.horizon)
    return {
        "estimators": {
            name: {
                "cost_of_a_sample": per_sample[name] / member_step,
                **convergence(np.concatenate(drawn[name]), truth.mean(axis=0)),
            }
            for name in ESTIMATORS
        },
        "member_step_us": 1e6 * member_step,
        "cosine_of_halves_of_the_truth": float(cosine(halves[0], halves[1])),
    }


def convergence(samples: np.ndarray, truth: np.ndarray) -> dict[str, list]:
    """The cosine between means of k samples and the true gradient, for k = 1, 2, 4, ...

    Args:
      samples: (num, P) estimates.
      truth: (P,) true gradient.

    Returns:
      "num_samples", the values of k; and "cosine", for each k [median, 10 %, 90 %] over disjoint
      groups of k samples.
    """
    num_samples = [2**i for i in range((len(samples) // SMALLEST).bit_length())]
    points = []
    for k in num_samples:
        means = samples[: len(samples) // k * k].reshape(-1, k, truth.size).mean(axis=1)
        points.append([float(x) for x in np.quantile(cosine(means, truth), [0.5, 0.1, 0.9])])
    return {"num_samples": num_samples, "cosine": points}


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The cosine of the angle between vectors along the last axis."""
    return np.sum(a * b, axis=-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def at_cost(curve: dict[str, Any], cost: float) -> float:
    """The median cosine at a given cost, interpolated linearly in log(cost)."""
    costs = np.array(curve["num_samples"]) * curve["cost_of_a_sample"]
    return float(np.interp(np.log(cost), np.log(costs), [point[0] for point in curve["cosine"]]))
