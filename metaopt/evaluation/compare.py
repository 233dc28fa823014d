"""A fair comparison: baselines are tuned on seeds of their own, all methods are reported on fresh ones."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.core import Algorithm, Task
from metaopt.errors import UserError
from metaopt.evaluation import statistics
from metaopt.evaluation.run import Curves, trainer
from metaopt.families import Baseline

Row = dict[str, Any]  # one line of RESULTS
RESULTS = "results.jsonl"  # in the folder of an evaluation: a header, then the rows


@dataclasses.dataclass(frozen=True)
class Settings:
    num_steps: int = 2000
    every: int = 20  # steps between two evaluations; all steps where a run has fewer
    seeds: int = 10  # reported
    tuning_seeds: int = 3  # for choosing rates, different from the reported ones
    draws: int = 1  # problems drawn from each task, the same for every method

    def __post_init__(self):
        if min(dataclasses.asdict(self).values()) < 1:
            raise UserError(f"every number of an evaluation must be at least 1, got {self}")
        object.__setattr__(self, "every", min(self.every, self.num_steps))
        if self.num_steps % self.every:
            raise UserError(f"steps must be a multiple of {self.every}, got {self.num_steps}")


class Method(NamedTuple):
    """What takes part in a comparison: a baseline with its grid, or a learned algorithm with nothing to tune.

    Attributes:
      name: unique in a comparison.
      kind: of algorithm, a name of ``families.KINDS``.
      make: ``(rate, num_steps) -> algorithm``.
      rates: what is tuned over; a single one is not tuned.
      manifest: what is known of learned weights: "sha256", "meta_trained_on"; None of a baseline.
    """

    name: str
    kind: str
    make: Callable[[jax.Array, int], Algorithm]
    rates: tuple[float, ...] = (1.0,)
    manifest: dict[str, Any] | None = None


def baseline(name: str, kind: str, settings: Baseline) -> Method:
    return Method(name, kind, settings.make, settings.rates)


def learned(name: str, kind: str, bind: Callable[[int], Algorithm], manifest: dict[str, Any] | None = None) -> Method:
    """``bind``: ``num_steps -> algorithm``. There is one rate, of which it knows nothing."""
    return Method(name, kind, lambda rate, num_steps: bind(num_steps), manifest=manifest or {})


def measure(task: Task, method: Method, settings: Settings, draws: Iterable[int]) -> Iterator[Row]:
    """Runs one method on some draws of one task.

    The rate of a method is the one with the lowest median validation loss at the
    end over the tuning seeds; a loss that is not finite counts as infinite. Reported
    are fresh seeds. Seeds fix initial parameters and batches, the same for every method.
    A draw is tuned by itself, so its rows do not depend on the other draws.

    Yields:
      Rows with "phase" "tuning" (final losses of each rate) and "report" (curves).
    """
    tuning_keys = jax.random.split(jax.random.key(1), settings.tuning_seeds)
    report_keys = jax.random.split(jax.random.key(2), settings.seeds)
    run = trainer(task, lambda rate: method.make(rate, settings.num_steps), settings.num_steps, settings.every)
    for draw in draws:
        problem_key = jax.random.fold_in(jax.random.key(3), draw)
        common = {"task": task.name, "draw": draw, "method": method.name}
        rates = method.rates
        rate = rates[0]
        if len(rates) > 1:
            curves = jax.device_get(run(jnp.array(rates), problem_key, tuning_keys))
            yield from _tuning_rows(common, rates, curves)
            final = np.where(np.isfinite(curves.valid[..., -1]), curves.valid[..., -1], np.inf)
            rate = rates[int(np.argmin(statistics.median(final)))]
        curves = jax.device_get(run(jnp.array([rate]), problem_key, report_keys))
        yield from _report_rows(common, rate, rates, curves)


def _tuning_rows(common: Row, rates, curves: Curves) -> Iterator[Row]:
    for i, rate in enumerate(rates):
        finals = [_rounded(x) for x in curves.valid[i, :, -1]]
        yield {"phase": "tuning", **common, "rate": rate, "final_valid": finals}


def _report_rows(common: Row, rate: float, rates, curves: Curves) -> Iterator[Row]:
    for seed in range(curves.valid.shape[1]):
        train, valid = curves.train[0, seed], curves.valid[0, seed]
        # Also a run that ends above its start has failed, finite or not.
        diverged = not (np.isfinite(valid[-1]) and train[-1] <= train[0])
        yield {
            "phase": "report",
            **common,
            "rate": rate if len(rates) > 1 else None,
            "rate_at_edge": len(rates) > 1 and rate in (rates[0], rates[-1]),
            "seed": seed,
            "diverged": diverged,
            "train": [_rounded(x) for x in train],
            "valid": [_rounded(x) for x in valid],
            "test": _rounded(curves.test[0, seed]),
        }


def _rounded(value) -> float | None:
    """Six digits; null for what is not finite, which JSON cannot say."""
    value = float(value)
    return float(f"{value:.6g}") if math.isfinite(value) else None
