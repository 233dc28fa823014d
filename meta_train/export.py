"""From a run directory to a checkpoint."""

import json
from pathlib import Path

from meta_train import run
from metaopt import checkpoint
from tasks import suites


def export(run_dir: Path, name: str, step: int | None = None, summary: str = "") -> Path:
    """Writes the meta-parameters of a run as a checkpoint and returns its folder.

    The manifest says what they were meta-trained on, so that "held out" can be
    decided by code.

    Raises:
      UserError: if there is no run, no saved state, or theta is not finite.
    """
    recipe = run.read_recipe(run_dir)
    theta, step = run.read_theta(run_dir, step)
    tasks = suites.build(recipe.suite)
    rows = [json.loads(row) for row in (run_dir / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["step"] <= step]
    return checkpoint.save(
        name,
        recipe.optimizer,
        recipe.settings,
        theta,
        summary=summary,
        licence="Apache-2.0",
        meta_trained_on=[task.traits() for task in tasks],
        recipe=run.recipe_json(recipe),
        **_history(recipe.start),
        cost=_added(
            {
                "outer_steps": step,
                "inner_steps": round(sum(row["inner_steps"] for row in rows)),
                "hours": _hours(rows),
            },
            recipe.start,
        ),
    )


def _history(start: str) -> dict:
    """What the run began from, with its own recipe and history."""
    if not start:
        return {}
    manifest = checkpoint.read_manifest(start)
    return {"started_from": {k: manifest[k] for k in ("sha256", "recipe", "cost", "started_from") if k in manifest}}


def _added(cost: dict, start: str) -> dict:
    """The cost of all that led here."""
    before = checkpoint.read_manifest(start).get("cost", {}) if start else {}
    return {name: round(value + before.get(name, 0), 2) for name, value in cost.items()}


def _hours(rows: list[dict]) -> float:
    """Time spent between dispatches; a gap of over a minute is an interruption and left out."""
    stamps = [row["time"] for row in rows]
    gaps = [later - earlier for earlier, later in zip(stamps[:-1], stamps[1:], strict=True)]
    return round(sum(gap for gap in gaps if gap < 60) / 3600, 2)
