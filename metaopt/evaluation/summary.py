"""From rows of results.jsonl to the numbers of a report."""

import dataclasses
from typing import Any

import numpy as np

from metaopt.evaluation import statistics, targets
from metaopt.evaluation.compare import Row

FRACTIONS = (0.25, 1.0)  # of the reference's run: its losses there are the targets


@dataclasses.dataclass(frozen=True)
class Cell:
    """One method on one problem. Steps are relative to the reference's own.

    Attributes:
      valid, train: final loss, (median, low, high) over seeds.
      ratios: for each of FRACTIONS, one number per seed: steps until the reference's
        median loss at that fraction of its run, over the steps it took; infinite for
        a miss.
      diverged: runs that failed.
    """

    valid: tuple[float, float, float]
    train: tuple[float, float, float]
    ratios: dict[float, np.ndarray]
    diverged: int
    num_seeds: int
    rate: float | None
    rate_at_edge: bool


Problem = tuple[str, int]  # task and draw


def curves(rows: list[Row], split: str) -> np.ndarray:
    """(seeds, points) losses; what was not finite is infinite."""
    return np.array([[np.inf if x is None else x for x in row[split]] for row in rows])


def group(rows: list[Row]) -> dict[Problem, dict[str, list[Row]]]:
    """Reported rows by problem, then method, in the order they were run."""
    groups: dict[Problem, dict[str, list[Row]]] = {}
    for row in rows:
        if row["phase"] == "report":
            groups.setdefault((row["task"], row["draw"]), {}).setdefault(row["method"], []).append(row)
    return groups


def summarize(rows: list[Row], reference: str, num_steps: int) -> dict[Problem, dict[str, Cell]]:
    """One cell for each problem and method, measured against ``reference``."""
    cells: dict[Problem, dict[str, Cell]] = {}
    for problem, methods in group(rows).items():
        goal = statistics.median(curves(methods[reference], "valid"), axis=0)
        steps = np.linspace(0, num_steps, len(goal))
        for name, runs in methods.items():
            valid = curves(runs, "valid")
            ratios = {}
            for fraction in FRACTIONS:
                point = max(1, round(fraction * (len(goal) - 1)))
                ratios[fraction] = targets.steps_to(valid, steps, goal[point]) / steps[point]
            cells.setdefault(problem, {})[name] = Cell(
                valid=_with_interval(valid[:, -1]),
                train=_with_interval(curves(runs, "train")[:, -1]),
                ratios=ratios,
                diverged=sum(row["diverged"] for row in runs),
                num_seeds=len(runs),
                rate=runs[0]["rate"],
                rate_at_edge=runs[0]["rate_at_edge"],
            )
    return cells


def claims(cells: dict[Problem, dict[str, Cell]], name: str, reference: str) -> dict[str, Any]:
    """What can be said of one method over all problems, as JSON values.

    Intervals resample problems, then seeds: they speak of problems like these.
    """
    of_problem = [methods[name] for methods in cells.values()]
    result: dict[str, Any] = {"reference": reference, "num_problems": len(of_problem)}
    for fraction in FRACTIONS:
        runs = [cell.ratios[fraction] for cell in of_problem]
        middle = lambda medians: float(statistics.median(medians))
        low, high = statistics.bootstrap_tasks(runs, middle)
        value = middle(np.array([statistics.median(r) for r in runs]))
        result[f"steps_ratio_{fraction:.0%}"] = {"median": _json(value), "interval": [_json(low), _json(high)]}
    better = [o[name].valid[0] <= o[reference].valid[0] for o in cells.values()]
    result["final_valid_not_worse"] = f"{sum(better)}/{len(better)}"
    result["diverged"] = f"{sum(c.diverged for c in of_problem)}/{sum(c.num_seeds for c in of_problem)}"
    return result


def _with_interval(values: np.ndarray) -> tuple[float, float, float]:
    return float(statistics.median(values)), *statistics.bootstrap(values)


def _json(value: float) -> float | None:
    """Null for infinity: the target was missed."""
    return round(value, 4) if np.isfinite(value) else None
