"""From a run directory to a checkpoint."""

import json
from pathlib import Path

from meta_train.run import directory
from metaopt import checkpoint
from tasks import suites

HISTORY = ("sha256", "recipe", "cost", "started_from", "source", "licence")  # kept of the checkpoint a run began from


def export(run_dir: Path, name: str, step: int | None = None, summary: str = "") -> Path:
    """Writes the meta-parameters of a run as a checkpoint and returns its folder.

    The manifest says what they were meta-trained on, so that "held out" can be
    decided by code.

    Raises:
      UserError: if there is no run, no saved state, or theta is not finite.
    """
    recipe = directory.read_recipe(run_dir)
    theta, step = directory.read_theta(run_dir, step)
    tasks = suites.build(recipe.suite)
    rows = [json.loads(row) for row in (run_dir / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["step"] <= step]
    # What is deployed has seen, and cost, all that led here.
    before = checkpoint.read_manifest(run_dir / directory.START) if recipe.start else {}
    seen = before.get("meta_trained_on") if before else []  # None: begun from weights of unknown training
    cost = {
        "outer_steps": step,
        "inner_steps": round(sum(row["inner_steps"] for row in rows)),
        "hours": _hours(rows),
    }
    return checkpoint.save(
        name,
        recipe.optimizer,
        recipe.settings,
        theta,
        summary=summary,
        licence="Apache-2.0",
        recipe=directory.recipe_json(recipe),
        cost={name: round(value + before.get("cost", {}).get(name, 0), 2) for name, value in cost.items()},
        **({"meta_trained_on": [*seen, *[task.traits() for task in tasks]]} if seen is not None else {}),
        **({"started_from": {k: before[k] for k in HISTORY if k in before}} if before else {}),
    )


def _hours(rows: list[dict]) -> float:
    """Time spent between dispatches; a gap of over a minute is an interruption and left out."""
    stamps = [row["time"] for row in rows]
    gaps = [later - earlier for earlier, later in zip(stamps[:-1], stamps[1:], strict=True)]
    return round(sum(gap for gap in gaps if gap < 60) / 3600, 2)
