"""Schedule study, ``metaopt schedule-study``: learned learning-rate schedules and the best of a grid.

    rate / (1 + t / Q)^decay

Meta-training runs with the ``hand`` family have learned rate and decay; the grid is every pair of
RATES and DECAYS, tuned on separate seeds. All schedules are measured on fresh seeds by the
quantity that they were chosen for, the validation loss averaged over training.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from meta_train import training
from meta_train.recipe import Recipe
from meta_train.run import directory
from metaopt.core import Theta
from metaopt.errors import UserError
from metaopt.evaluation import statistics
from metaopt.evaluation.compare import MOST
from metaopt.evaluation.run import trainer
from metaopt.optimizers import hand

RATES = tuple(float(f"{rate:.3g}") for rate in 10 ** np.linspace(-3, -0.5, 8))
DECAYS = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
POINTS = 25  # largest number of measurements during a training
GRID, CONSTANT = "best of the grid", "best constant rate"


def write(run_dirs: list[Path], out: Path, seeds: int = 20, tuning_seeds: int = 3) -> dict[str, Any]:
    """Writes ``schedule.json`` and ``schedule.png``, and returns the contents of the first.

    Args:
      run_dirs: run directories, at least one; the runs have the same tasks, settings and lengths
        of episodes, and may differ in all other settings.
      out: folder for the two files.
      seeds: number of seeds that are reported for each optimizer.
      tuning_seeds: number of seeds for each point of the grid.

    Raises:
      UserError: if a run does not learn rate and decay of ``hand``, the runs cannot be compared,
        or the folder cannot be written.
    """
    if not 1 <= seeds <= MOST:
        raise UserError(f"--seeds must be from 1 to {MOST:,}, got {seeds}")
    recipe = _common_recipe(run_dirs)
    try:
        out.mkdir(parents=True, exist_ok=True)  # before minutes of computation
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; choose another with --out") from error
    result = study(recipe, run_dirs, seeds, tuning_seeds)
    (out / "schedule.json").write_text(json.dumps(result) + "\n")
    draw(result).savefig(out / "schedule.png", dpi=110)
    return result


def study(recipe: Recipe, run_dirs: list[Path], seeds: int, tuning_seeds: int) -> dict[str, Any]:
    """Measures the grid and the runs.

    Args:
      recipe: recipe of the runs.
      run_dirs: run directories.
      seeds: number of seeds that are reported for each optimizer.
      tuning_seeds: number of seeds for each point of the grid.

    Returns:
      JSON values, None for numbers that are not finite.
    """
    (task,) = recipe.build_tasks()
    config = hand.Config(**recipe.family.settings)
    optimizer = hand.build(config)
    num_steps = recipe.episodes.bound(recipe.estimator.window)
    every = next(k for k in range(-(-num_steps // POINTS), num_steps + 1) if num_steps % k == 0)
    train = trainer(task, lambda theta: optimizer.bind(theta, num_steps=num_steps), num_steps, every)

    def measure(thetas: list[Theta], seed: int, num: int) -> Any:
        """The Curves of all thetas and seeds, as NumPy arrays."""
        stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *thetas)
        return jax.device_get(train(stacked, jax.random.key(3), jax.random.split(jax.random.key(seed), num)))

    def point(rate: float, decay: float) -> Theta:
        chosen = {"log_learning_rate": jnp.log(jnp.float32(rate)), "decay": jnp.float32(decay)}
        return optimizer.init(jax.random.key(0)) | chosen

    # One row of the grid at a time, because the whole grid would not fit into the cache.
    tuned = [measure([point(rate, decay) for rate in RATES], 1, tuning_seeds) for decay in DECAYS]
    surface = np.array([statistics.median(_along(curves.valid)) for curves in tuned])
    best = np.unravel_index(np.argmin(surface), surface.shape)
    thetas = {path.name: jax.device_get(training.read_theta(path)[0]) for path in run_dirs}
    thetas[GRID] = point(RATES[best[1]], DECAYS[best[0]])
    thetas[CONSTANT] = point(RATES[np.argmin(surface[DECAYS.index(0.0)])], 0.0)
    curves = measure(list(thetas.values()), 2, seeds)

    spent = {path.name: sum(row["inner_steps"] for row in directory.read_metrics(path)) for path in run_dirs}
    spent |= {GRID: surface.size * tuning_seeds * num_steps, CONSTANT: len(RATES) * tuning_seeds * num_steps}
    steps = np.arange(0, num_steps + 1, every)
    return {
        "task": task.name,
        "num_steps": num_steps,
        "seeds": seeds,
        "tuning_seeds": tuning_seeds,
        "rates": RATES,
        "decays": DECAYS,
        "surface": _plain(surface),
        "best_at_edge": any(i in (0, num - 1) for i, num in zip(best, surface.shape, strict=True)),
        "steps": steps.tolist(),
        "optimizers": {
            name: {
                "inner_steps": round(spent[name]),
                "learning_rate": _plain(hand.learning_rate(config, theta, steps, num_steps)),
                **{entry: _plain(theta[entry]) for entry in ("log_learning_rate", "decay")},
                "mean_valid": _with_interval(_along(curves.valid[i])),
                "final_valid": _with_interval(_finite(curves.valid[i, :, -1])),
                "test": _with_interval(_finite(curves.test[i])),
                "valid": _plain([_with_interval(losses) for losses in _finite(curves.valid[i]).T]),
            }
            for i, (name, theta) in enumerate(thetas.items())
        },
        "paths": {path.name: _path(path) for path in run_dirs},
    }


def table(result: dict[str, Any]) -> str:
    """A text table with the losses of each optimizer on fresh seeds and the inner steps spent to find it."""

    def show(triple: list[float]) -> str:
        middle, low, high = triple
        return f"{middle:.4f} [{low:.4f}, {high:.4f}]"

    lines = [f"{'':20} {'mean valid':24} {'final valid':24} {'test':24} rate     decay  inner steps spent"]
    for name, o in result["optimizers"].items():
        losses = " ".join(f"{show(o[key]):24}" for key in ("mean_valid", "final_valid", "test"))
        lines.append(f"{name:20} {losses} {o['learning_rate'][0]:<8.4f} {o['decay']:<6.2f} {o['inner_steps']:,}")
    return "\n".join(lines)


def draw(result: dict[str, Any]) -> Figure:
    """Draws schedules, validation losses, and the path of each run over the surface of the grid."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    schedules, losses, surface = figure.subplots(1, 3)
    steps = result["steps"]
    for i, (name, o) in enumerate(result["optimizers"].items()):
        color = {GRID: "black", CONSTANT: "gray"}.get(name, f"C{i}")
        line: dict[str, Any] = {"color": color, "linewidth": 2, "linestyle": "--" if name == CONSTANT else "-"}
        mark: dict[str, Any] = {"color": color, "markeredgecolor": "white", "markersize": 9, "zorder": 3}
        schedules.plot(steps, o["learning_rate"], label=f"{name} ({o['inner_steps'] / 1e6:.2g}M steps spent)", **line)
        middle, low, high = np.array(o["valid"], float)[1:].T
        losses.plot(steps[1:], middle, label=f"{name}: mean {o['mean_valid'][0]:.3f}", **line)
        losses.fill_between(steps[1:], low, high, color=color, alpha=0.15, linewidth=0)
        surface.plot(o["learning_rate"][0], o["decay"], "o" if name in result["paths"] else "X", label=name, **mark)
        if name in result["paths"]:
            surface.plot(*np.array(result["paths"][name], float).T, color=color, linewidth=1.5)
    heights = np.array(result["surface"], float)
    levels = np.nanmin(heights) * np.geomspace(1, 4, 13)
    heights = np.where(np.isfinite(heights), heights, 10 * levels[-1])
    filled = surface.contourf(result["rates"], result["decays"], heights, levels, cmap="viridis_r", extend="max")
    figure.colorbar(filled, ax=surface, format="%.2g", label="mean validation loss")
    schedules.set(title=f"learning rate, {result['task']}", xlabel="inner step", yscale="log")
    losses.set(title=f"validation loss, {result['seeds']} fresh seeds", xlabel="inner step", yscale="log")
    surface.set(title="the grid, and the path of each run", xlabel="rate", ylabel="decay", xscale="log")
    for axes in (schedules, losses):
        axes.yaxis.set(major_locator=LogLocator(subs=(1, 2, 3, 5)), major_formatter="{x:g}", minor_formatter="")
        axes.grid(alpha=0.3, which="both", linewidth=0.5)
        axes.legend(fontsize=8)
    surface.legend(fontsize=8, loc="lower right")
    return figure


def _common_recipe(run_dirs: list[Path]) -> Recipe:
    """The recipe of the first run. Raises UserError if the runs cannot be compared."""
    if len({path.name for path in run_dirs}) < len(run_dirs):
        raise UserError("runs are distinguished by the names of their folders: give them different ones")
    recipes = [directory.read_recipe(path) for path in run_dirs]
    for path, recipe in zip(run_dirs, recipes, strict=True):
        learns = recipe.family.settings
        if recipe.family.name != "hand" or not learns.get("decay_steps") or learns.get("num_tensors"):
            raise UserError(
                f"{path} learns no rate and decay of hand: meta-train the recipe mnist-schedule, or a similar one"
            )
        for name, ours, theirs in _comparable(recipe, recipes[0]):
            if ours != theirs:
                raise UserError(f"{path} and {run_dirs[0]} cannot be compared: they differ in {name}")
    return recipes[0]


def _comparable(recipe: Recipe, other: Recipe) -> list[tuple[str, Any, Any]]:
    """(name, value, other value) of the settings that have to be equal in the two recipes."""
    return [
        ("tasks", recipe.tasks, other.tasks),
        ("settings", recipe.family.settings, other.family.settings),
        ("longest", recipe.episodes.longest, other.episodes.longest),
    ]


def _path(path: Path) -> list:
    """About a hundred points (rate, decay) in the course of meta-training."""
    rows = directory.read_metrics(path)
    rows = [*rows[:: max(1, len(rows) // 100)], rows[-1]]
    return _plain([(np.exp(row["theta/log_learning_rate"]), row["theta/decay"]) for row in rows])


def _along(valid: np.ndarray) -> np.ndarray:
    """The mean of the losses after the first; infinity if one is not finite."""
    return _finite(valid)[..., 1:].mean(axis=-1)


def _finite(losses: np.ndarray) -> np.ndarray:
    """Replaces losses that are not finite by infinity."""
    return np.where(np.isfinite(losses), losses, np.inf)


def _with_interval(values: np.ndarray) -> list[float | None]:
    """[median, low, high]."""
    return _plain([statistics.median(values), *statistics.bootstrap(values)])


def _plain(values: Any) -> Any:
    """Nested lists of numbers with five digits; None for numbers that are not finite."""
    values = np.asarray(values, float)
    if values.ndim:
        return [_plain(value) for value in values]
    return float(f"{values:.5g}") if np.isfinite(values) else None
