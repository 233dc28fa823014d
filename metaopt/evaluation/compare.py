"""Equal chances: tune every baseline on some seeds, report everybody on fresh ones."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metaopt.core import Task
from metaopt.errors import UserError
from metaopt.evaluation import statistics
from metaopt.evaluation.baselines import Baseline
from metaopt.evaluation.run import Curves, trainer

Row = dict[str, Any]  # one line of results.jsonl


@dataclasses.dataclass(frozen=True)
class Settings:
    num_steps: int = 2000
    every: int = 20  # steps between two evaluations
    seeds: int = 10  # reported
    tuning_seeds: int = 3  # for choosing rates, different from the reported ones
    draws: int = 1  # problems drawn from each task, the same for everybody

    def __post_init__(self):
        if min(dataclasses.asdict(self).values()) < 1:
            raise UserError(f"every number of an evaluation must be at least 1, got {self}")
        if self.num_steps % self.every:
            raise UserError(f"steps must be a multiple of {self.every}, got {self.num_steps}")


@dataclasses.dataclass(frozen=True)
class Entrant:
    """Who takes part: a baseline with its grid, or a learned optimizer with nothing to tune."""

    name: str
    make: Callable[[jax.Array, int], optax.GradientTransformation]  # (rate, num_steps)
    rates: tuple[float, ...] = (1.0,)


def baseline(name: str, settings: Baseline) -> Entrant:
    return Entrant(name, settings.make, settings.rates)


def learned(name: str, bind: Callable[[int], optax.GradientTransformation]) -> Entrant:
    """``bind``: num_steps -> optimizer. One rate, of which it knows nothing."""
    return Entrant(name, lambda rate, num_steps: bind(num_steps))


def compare(task: Task, entrants: Sequence[Entrant], settings: Settings) -> Iterator[Row]:
    """Every entrant on every draw of one task: ``measure`` for each."""
    for entrant in entrants:
        yield from measure(task, entrant, settings, range(settings.draws))


def measure(task: Task, entrant: Entrant, settings: Settings, draws: Iterable[int]) -> Iterator[Row]:
    """Runs one entrant on some draws of one task.

    The rate of an entrant is the one with the lowest median validation loss at the
    end over the tuning seeds; a loss that is not finite counts as infinite. Reported
    are fresh seeds. Seeds fix initial parameters and batches, the same for everybody.
    A draw is tuned by itself, so its rows do not depend on the other draws.

    Yields:
      Rows with "phase" "tuning" (final losses of each rate) and "report" (curves).
    """
    tuning_keys = jax.random.split(jax.random.key(1), settings.tuning_seeds)
    report_keys = jax.random.split(jax.random.key(2), settings.seeds)
    run = trainer(task, lambda rate: entrant.make(rate, settings.num_steps), settings.num_steps, settings.every)
    for draw in draws:
        problem_key = jax.random.fold_in(jax.random.key(3), draw)
        common = {"task": task.name, "draw": draw, "optimizer": entrant.name}
        rates = entrant.rates
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
