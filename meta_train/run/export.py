"""From a run directory to a checkpoint: theta, what it has seen and what it cost."""

from pathlib import Path
from typing import Any

import jax

from meta_train.run import directory, state
from metaopt import checkpoint, families, leaves

HISTORY = ("sha256", "recipe", "cost", "started_from", "source", "licence")  # kept of the checkpoint a run began from


def export(
    run_dir: str | Path,
    name: str | Path,
    step: int | None = None,
    summary: str = "",
    licence: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes the meta-parameters of a run as a checkpoint and returns its folder.

    It reads what the run recorded, and neither the data nor the code of its tasks: "held out" is
    decided from the traits that they had when the run started.

    Args:
      run_dir: the run.
      name: name or folder of the checkpoint, as for ``checkpoint.save``.
      step: a saved outer step, the newest by default.
      summary: one line for the list of checkpoints.
      licence: licence of the weights; not given, that of the weights the run began from, else none is
        claimed.
      overwrite: whether a checkpoint of this name may be replaced.

    Raises:
      UserError: if there is no run, no saved state, theta is not finite, or there is something of this
        name already.
    """
    run_dir = Path(run_dir)
    run_config = directory.read_config(run_dir)
    recipe, family = run_config["recipe"], run_config["family"]
    step = state.find(run_dir, step)
    rows = [row for row in directory.read_metrics(run_dir) if row["step"] <= step]
    arrays = leaves.flatten(state.read_theta(run_dir, step))
    before: dict[str, Any] = {}
    if recipe["family"]["start"]:
        before = checkpoint.read_manifest(run_dir / directory.START)
        # What was held constant is deployed as well.
        arrays = checkpoint.read_arrays(run_dir / directory.START) | arrays
    about: dict[str, Any] = {"summary": summary, "recipe": _portable(recipe), "cost": _cost(rows, step, before)}
    if licence or before.get("licence"):
        about["licence"] = licence or before["licence"]
    # What is deployed has seen all that led here; nobody knows where it began from weights of unknown training.
    if not before or "meta_trained_on" in before:
        about["meta_trained_on"] = [*before.get("meta_trained_on", []), *directory.read_traits(run_dir)]
    if before:
        about["started_from"] = {key: before[key] for key in HISTORY if key in before}
    config = before.get("config") or recipe["family"]["settings"]
    if not families.is_ours(family):
        return checkpoint.write(name, run_config["kind"], family, config, arrays, overwrite=overwrite, **about)
    expected = jax.eval_shape(families.build(family, **config).init, jax.random.key(0))
    theta = leaves.unflatten(arrays, expected, run_dir)
    return checkpoint.save(name, family, config, theta, overwrite=overwrite, **about)


def _portable(value: Any) -> Any:
    """A recipe without the folders of this machine: of a path the last part stays."""
    if isinstance(value, dict):
        return {name: _portable(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_portable(entry) for entry in value]
    return value.rpartition("/")[2] if isinstance(value, str) else value


def _cost(rows: list[dict[str, Any]], step: int, before: dict[str, Any]) -> dict[str, Any]:
    """What all that led here cost: outer steps, inner steps, hours of dispatches."""
    cost = {
        "outer_steps": step,
        "inner_steps": round(sum(row["inner_steps"] for row in rows)),
        "hours": sum(row["seconds"] for row in rows) / 3600,
    }
    total = {name: value + before.get("cost", {}).get(name, 0) for name, value in cost.items()}
    return total | {"hours": float(f"{total['hours']:.3g}")}
