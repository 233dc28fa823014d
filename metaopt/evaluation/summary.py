"""The numbers of a report, computed from the rows of results.jsonl."""

import dataclasses
from typing import Any

import numpy as np

from metaopt.evaluation import statistics, targets
from metaopt.evaluation.compare import Row

FRACTIONS = (0.25, 1.0)  # fractions of the training of the reference at which its losses are the targets


@dataclasses.dataclass(frozen=True)
class Cell:
    """The results of one method on one problem.

    Attributes:
      valid: final validation loss, (median, low, high) over seeds.
      train: final training loss, (median, low, high) over seeds.
      ratios: for each of FRACTIONS (num_seeds,) ratios: the number of steps to the median loss
        of the reference at that fraction of its training, over the number of steps that the
        reference took; infinity if the loss was not reached.
      diverged: number of training runs that failed.
      num_seeds: number of training runs.
      rate: tuned rate; None if the method has none.
      rate_at_edge: whether the rate is at the edge of its grid.
    """

    valid: tuple[float, float, float]
    train: tuple[float, float, float]
    ratios: dict[float, np.ndarray]
    diverged: int
    num_seeds: int
    rate: float | None
    rate_at_edge: bool


Problem = tuple[str, int]  # name of the task, and index of the problem drawn from it


def curves(rows: list[Row], split: str) -> np.ndarray:
    """The (seeds, points) losses of a method on a split; infinity where a loss is not finite."""
    return np.array([[np.inf if x is None else x for x in row[split]] for row in rows])


def group(rows: list[Row]) -> dict[Problem, dict[str, list[Row]]]:
    """The rows with phase "report" by problem and method, in the order of ``rows``."""
    groups: dict[Problem, dict[str, list[Row]]] = {}
    for row in rows:
        if row["phase"] == "report":
            groups.setdefault((row["task"], row["draw"]), {}).setdefault(row["method"], []).append(row)
    return groups


def summarize(rows: list[Row], reference: str, num_steps: int) -> dict[Problem, dict[str, Cell]]:
    """The results of each method on each problem that the reference has been measured on.

    Args:
      rows: rows of results.jsonl.
      reference: name of the method whose losses are the targets.
      num_steps: steps of a training run.
    """
    cells: dict[Problem, dict[str, Cell]] = {}
    for problem, methods in group(rows).items():
        if reference not in methods:
            continue
        goals = statistics.median(curves(methods[reference], "valid"), axis=0)
        steps = np.linspace(0, num_steps, len(goals))
        for name, seeds in methods.items():
            valid = curves(seeds, "valid")
            ratios = {}
            for fraction in FRACTIONS:
                point = max(1, round(fraction * (len(goals) - 1)))
                ratios[fraction] = targets.steps_to(valid, steps, goals[point]) / steps[point]
            cells.setdefault(problem, {})[name] = Cell(
                valid=_with_interval(valid[:, -1]),
                train=_with_interval(curves(seeds, "train")[:, -1]),
                ratios=ratios,
                diverged=sum(row["diverged"] for row in seeds),
                num_seeds=len(seeds),
                rate=seeds[0]["rate"],
                rate_at_edge=seeds[0]["rate_at_edge"],
            )
    return cells


def claims(cells: dict[Problem, dict[str, Cell]], name: str, reference: str) -> dict[str, Any]:
    """The results of one method over all its problems, as JSON values.

    The bootstrap resamples problems, then seeds: the intervals are for problems like these.

    Args:
      cells: results of all methods, see ``summarize``; the method has at least one.
      name: name of the method.
      reference: name of the method whose losses are the targets.
    """
    cells = {problem: methods for problem, methods in cells.items() if name in methods}
    own_cells = [methods[name] for methods in cells.values()]
    result: dict[str, Any] = {"reference": reference, "num_problems": len(own_cells)}
    for fraction in FRACTIONS:
        ratios = [cell.ratios[fraction] for cell in own_cells]
        low, high = statistics.bootstrap_tasks(ratios, _median)
        value = _median(np.array([statistics.median(r) for r in ratios]))
        result[f"steps_ratio_{fraction:.0%}"] = {"median": _json(value), "interval": [_json(low), _json(high)]}
    not_worse = [methods[name].valid[0] <= methods[reference].valid[0] for methods in cells.values()]
    result["final_valid_not_worse"] = f"{sum(not_worse)}/{len(not_worse)}"
    result["diverged"] = f"{sum(c.diverged for c in own_cells)}/{sum(c.num_seeds for c in own_cells)}"
    return result


def _median(values: np.ndarray) -> float:
    return float(statistics.median(values))


def _with_interval(values: np.ndarray) -> tuple[float, float, float]:
    return _median(values), *statistics.bootstrap(values)


def _json(value: float) -> float | None:
    """Four digits; None for infinity, which means that the target was not reached."""
    return round(value, 4) if np.isfinite(value) else None
