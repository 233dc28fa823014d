"""Learned learning-rate schedules beside the best of a grid: ``metaopt schedule-study``.

    rate / (1 + t / Q)^decay

Meta-trained runs of the ``hand`` family have learned both numbers; the grid tries every
pair of RATES and DECAYS on seeds of its own. All are measured on fresh seeds, by what they
were all chosen for: the validation loss, averaged along a run.
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
from metaopt.evaluation.run import trainer
from metaopt.optimizers import hand

RATES = tuple(float(f"{rate:.3g}") for rate in 10 ** np.linspace(-3, -0.5, 8))
DECAYS = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
POINTS = 25  # measurements along a run, at most
GRID, CONSTANT = "best of the grid", "best constant rate"


def write(run_dirs: list[Path], out: Path, seeds: int = 20, tuning_seeds: int = 3) -> dict[str, Any]:
    """Writes ``schedule.json`` and ``schedule.png`` to ``out`` and returns what the first holds.

    Args:
      run_dirs: runs that differ in how they were meta-trained, not in what; one at least.
      out: folder.
      seeds: reported runs of each optimizer.
      tuning_seeds: runs of each point of the grid.

    Raises:
      UserError: for runs that learn something else or cannot be compared.
    """
    recipe = _common_recipe(run_dirs)
    try:
        out.mkdir(parents=True, exist_ok=True)  # before minutes are spent on what goes there
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}") from error
    result = study(recipe, run_dirs, seeds, tuning_seeds)
    (out / "schedule.json").write_text(json.dumps(result) + "\n")
    draw(result).savefig(out / "schedule.png", dpi=110)
    return result


def study(recipe: Recipe, run_dirs: list[Path], seeds: int, tuning_seeds: int) -> dict[str, Any]:
    """Measures the grid and the runs; plain JSON values, null for what is not finite."""
    (task,) = recipe.build_tasks()
    config = hand.Config(**recipe.family.settings)
    optimizer = hand.build(config)
    num_steps = recipe.episodes.bound(recipe.estimator.window)
    every = next(k for k in range(-(-num_steps // POINTS), num_steps + 1) if num_steps % k == 0)
    train = trainer(task, lambda theta: optimizer.bind(theta, num_steps=num_steps), num_steps, every)

    def measure(thetas: list[Theta], seed: int, num: int):
        stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *thetas)
        return jax.device_get(train(stacked, jax.random.key(3), jax.random.split(jax.random.key(seed), num)))

    def point(rate: float, decay: float) -> Theta:
        chosen = {"log_learning_rate": jnp.log(jnp.float32(rate)), "decay": jnp.float32(decay)}
        return optimizer.init(jax.random.key(0)) | chosen

    # A row of the grid at a time: all of it at once would not stay in cache.
    tuned = [measure([point(rate, decay) for rate in RATES], 1, tuning_seeds) for decay in DECAYS]
    surface = np.array([statistics.median(_along(curves.valid)) for curves in tuned])
    best = np.unravel_index(np.argmin(surface), surface.shape)
    thetas = {path.name: jax.device_get(training.read_theta(path)[0]) for path in run_dirs}
    thetas[GRID] = point(RATES[best[1]], DECAYS[best[0]])
    thetas[CONSTANT] = point(RATES[np.argmin(surface[DECAYS.index(0.0)])], 0.0)
    curves = measure(list(thetas.values()), 2, seeds)

    spent = {path.name: sum(row["inner_steps"] for row in _metrics(path)) for path in run_dirs}
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
    """The optimizers, a line each: losses on fresh seeds and what was spent to find them."""
    show = lambda triple: f"{triple[0]:.4f} [{triple[1]:.4f}, {triple[2]:.4f}]"
    lines = [f"{'':20} {'mean valid':24} {'final valid':24} {'test':24} rate     decay  inner steps spent"]
    for name, o in result["optimizers"].items():
        losses = " ".join(f"{show(o[key]):24}" for key in ("mean_valid", "final_valid", "test"))
        lines.append(f"{name:20} {losses} {o['learning_rate'][0]:<8.4f} {o['decay']:<6.2f} {o['inner_steps']:,}")
    return "\n".join(lines)


def draw(result: dict[str, Any]) -> Figure:
    """Schedules, validation losses, and the path of each run over the surface of the grid."""
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
    if len({path.name for path in run_dirs}) < len(run_dirs):
        raise UserError("runs are told apart by the names of their folders: give them different ones")
    recipes = [directory.read_recipe(path) for path in run_dirs]
    for path, recipe in zip(run_dirs, recipes, strict=True):
        learns = recipe.family.settings
        if recipe.family.name != "hand" or not learns.get("decay_steps") or learns.get("num_tensors"):
            raise UserError(f"{path} learns no rate and decay of hand: meta-train mnist-schedule, or the like of it")
        for name, ours, theirs in _comparable(recipe, recipes[0]):
            if ours != theirs:
                raise UserError(f"{path} and {run_dirs[0]} cannot be compared: they differ in {name}")
    return recipes[0]


def _comparable(recipe: Recipe, other: Recipe) -> list[tuple[str, Any, Any]]:
    """What two recipes have to have in common, by name."""
    return [
        ("tasks", recipe.tasks, other.tasks),
        ("settings", recipe.family.settings, other.family.settings),
        ("longest", recipe.episodes.longest, other.episodes.longest),
    ]


def _metrics(path: Path) -> list[dict[str, Any]]:
    return [json.loads(row) for row in (path / "metrics.jsonl").read_text().splitlines()]


def _path(path: Path) -> list:
    """(rate, decay) as meta-training went on, a hundred points of it."""
    rows = _metrics(path)
    rows = [*rows[:: max(1, len(rows) // 100)], rows[-1]]
    return _plain([(np.exp(row["theta/log_learning_rate"]), row["theta/decay"]) for row in rows])


def _along(valid: np.ndarray) -> np.ndarray:
    """Mean of the losses after the start."""
    return _finite(valid)[..., 1:].mean(axis=-1)


def _finite(losses: np.ndarray) -> np.ndarray:
    """What is not finite has failed and counts as infinite."""
    return np.where(np.isfinite(losses), losses, np.inf)


def _with_interval(values: np.ndarray) -> list:
    return _plain([statistics.median(values), *statistics.bootstrap(values)])


def _plain(values) -> Any:
    values = np.asarray(values, float)
    if values.ndim:
        return [_plain(value) for value in values]
    return float(f"{values:.5g}") if np.isfinite(values) else None
