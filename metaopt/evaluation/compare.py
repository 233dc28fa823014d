"""A fair comparison: baselines are tuned on separate seeds, all methods are reported on fresh ones."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.core import Algorithm, Task, num_calls
from metaopt.errors import UserError
from metaopt.evaluation import statistics
from metaopt.evaluation.run import Curves, trainer
from metaopt.families import Baseline

Row = dict[str, Any]  # one line of RESULTS
MOST = 10_000  # seeds or draws: their curves have to fit into memory
RESULTS = "results.jsonl"  # file in the folder of an evaluation, with a header and then the rows


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sizes of a comparison."""

    num_steps: int = 2000  # steps of a training run
    every: int = 20  # steps between two evaluations of the losses, at most num_steps
    seeds: int = 10  # number of seeds that are reported
    tuning_seeds: int = 3  # number of seeds for choosing rates, different from the reported ones
    draws: int = 1  # number of problems drawn from each task, the same for every method

    def __post_init__(self) -> None:
        if min(dataclasses.asdict(self).values()) < 1:
            raise UserError(f"every number of an evaluation must be at least 1, got {self}")
        for name, number in dataclasses.asdict(self).items():
            most = 2**30 if name in ("num_steps", "every") else MOST
            if number > most:
                raise UserError(f"{name} of an evaluation must be at most {most:,}, got {number:,}")
        object.__setattr__(self, "every", min(self.every, self.num_steps))
        if self.num_steps % self.every:
            raise UserError(f"steps must be a multiple of {self.every}, got {self.num_steps}")


class Method(NamedTuple):
    """A method in a comparison: a baseline with its grid, or a learned algorithm without hyper-parameters to tune.

    Attributes:
      name: name in the results, unique in a comparison.
      kind: kind of the algorithm, a name in ``families.KINDS``.
      make: ``(rate, num_steps) -> algorithm``.
      rates: grid that the rate is tuned over; a single rate is not tuned.
      manifest: manifest of learned weights, with "sha256" and "meta_trained_on"; None for a baseline.
    """

    name: str
    kind: str
    make: Callable[[jax.Array, int], Algorithm]
    rates: tuple[float, ...] = (1.0,)
    manifest: dict[str, Any] | None = None


def baseline(name: str, kind: str, settings: Baseline) -> Method:
    """The method of a hand-written algorithm."""
    return Method(name, kind, settings.make, settings.rates)


def learned(name: str, kind: str, bind: Callable[[int], Algorithm], manifest: dict[str, Any] | None = None) -> Method:
    """The method of a learned algorithm, which has no rate.

    Args:
      name: name in the results.
      kind: kind of the algorithm, a name in ``families.KINDS``.
      bind: ``num_steps -> algorithm``.
      manifest: manifest of its weights; None if there is none.
    """
    return Method(name, kind, lambda rate, num_steps: bind(num_steps), manifest=manifest or {})


def measure(
    task: Task, method: Method, settings: Settings, draws: Iterable[int], known: Iterable[Row] = ()
) -> Iterator[Row]:
    """Measures one method on problems of one task.

    The rate of a method is the one with the lowest median, over the tuning seeds, of the final
    validation loss; a loss that is not finite counts as infinite. The method is then reported on
    fresh seeds. A seed determines initial parameters and batches, the same for every method. Rates
    are tuned for each problem separately, so the rows of a problem do not depend on other problems.

    Args:
      task: task that the problems are drawn from.
      method: baseline or learned algorithm.
      settings: sizes of the comparison.
      draws: indices of the problems.
      known: rows that were measured before, of whole tunings and whole reports.

    Yields:
      Rows with "phase" "tuning" (final losses of each rate) and "report" (curves), but for the known ones.
    """
    tuning_keys = jax.random.split(jax.random.key(1), settings.tuning_seeds)
    report_keys = jax.random.split(jax.random.key(2), settings.seeds)
    run, rates, known = method_trainer(task, method, settings), method.rates, list(known)
    single = rates[0]
    for draw in draws:
        problem_key = jax.random.fold_in(jax.random.key(3), draw)
        common = {"task": task.name, "draw": draw, "method": method.name}
        here = [row for row in known if common.items() <= row.items()]
        tuning: list[Row] = [row for row in here if row["phase"] == "tuning"]
        if len(rates) > 1 and not tuning:
            curves = jax.device_get(run(jnp.array(rates), problem_key, tuning_keys))
            tuning = _tuning_rows(common, rates, curves)
            yield from tuning
        if len(tuning) < len(here):
            continue  # it is reported already
        rate = _best_rate(tuning) if tuning else single
        curves = jax.device_get(run(jnp.array([rate]), problem_key, report_keys))
        yield from _report_rows(common, rate, rates, curves)


def method_trainer(task: Task, method: Method, settings: Settings) -> Any:
    """The ``trainer`` of a method on a task."""
    calls = num_calls(task, method.kind, settings.num_steps)
    return trainer(task, lambda rate: method.make(rate, calls), settings.num_steps, settings.every)


def _best_rate(tuning: list[Row]) -> float:
    """The rate with the lowest median of its final losses."""
    final = [[np.inf if loss is None else loss for loss in row["final_valid"]] for row in tuning]
    return tuning[int(np.argmin(statistics.median(np.array(final))))]["rate"]


def _tuning_rows(common: Row, rates: tuple[float, ...], curves: Curves) -> list[Row]:
    finals = [[_rounded(x) for x in curves.valid[i, :, -1]] for i in range(len(rates))]
    return [{"phase": "tuning", **common, "rate": r, "final_valid": f} for r, f in zip(rates, finals, strict=True)]


def _report_rows(common: Row, rate: float, rates: tuple[float, ...], curves: Curves) -> Iterator[Row]:
    for seed in range(curves.valid.shape[1]):
        train, valid = curves.train[0, seed], curves.valid[0, seed]
        # A training run has also failed if its final training loss is larger than the first.
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


def _rounded(value: Any) -> float | None:
    """Six digits; None if the value is not finite, for which JSON has no number."""
    value = float(value)
    return float(f"{value:.6g}") if math.isfinite(value) else None
