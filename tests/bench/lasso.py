"""L2O-PA against ISTA and FISTA: ``python -m tests.bench.lasso RUN``, a run of the recipe ``lasso``.

Fresh regressions, from a random start as in meta-training and from zero as published.
Rows hold how many steps it takes to the relative gap (F - F*) / F* = 1e-3, the median and
the slowest tenth, the share of instances that arrive and the median gap within and at
ten times the horizon of meta-training. F* is the best of 20,000 steps of FISTA, and of
all methods.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from meta_train import training
from meta_train.run import directory
from metaopt.optimizers.l2o_pa import soft_threshold
from tasks import Lasso

INSTANCES, TARGET, STEP_SIZE, STEPS_TO_OPTIMUM = 256, 1e-3, 0.9999, 20_000
TASK = Lasso()
VALUE = lambda problem, x: TASK.loss(problem, {"x": x}, jax.random.key(0), "valid")
GRAD = jax.grad(lambda problem, x: TASK.loss(problem, {"x": x}, jax.random.key(0)), argnums=1)


def main(run_dir: Path) -> None:
    recipe = directory.read_recipe(run_dir)
    theta, _ = training.read_theta(run_dir)
    tx = training.whole_family(recipe).bind(theta)
    horizon = recipe.episodes.longest
    methods = {
        "ista": lambda problem, x, steps: fista(problem, x, steps, momentum=False),
        "fista": fista,
        "l2o_pa": lambda problem, x, steps: learned(tx, problem, x, steps),
    }
    problems = jax.vmap(TASK.sample)(jax.random.split(jax.random.key(2**20), INSTANCES))
    random = jax.random.normal(jax.random.key(1), (INSTANCES, TASK.columns))
    for start, x0 in {"random": random, "zero": jnp.zeros_like(random)}.items():
        curves = {name: values(method, problems, x0, 10 * horizon) for name, method in methods.items()}
        optimum = np.min(values(fista, problems, x0, STEPS_TO_OPTIMUM), axis=1)
        optimum = np.minimum(optimum, np.min([c.min(axis=1) for c in curves.values()], axis=0))
        for name, curve in curves.items():
            print(json.dumps({"bench": "lasso", "start": start, "method": name} | row(curve, optimum, horizon)))


def row(curve: np.ndarray, optimum: np.ndarray, horizon: int) -> dict:
    gap = curve / optimum[:, None] - 1.0
    arrived = np.any(gap <= TARGET, axis=1)
    steps = np.where(arrived, np.argmax(gap <= TARGET, axis=1), np.inf)
    return {
        "median_steps": float(np.median(steps)),
        "slowest_tenth": float(np.quantile(steps, 0.9, method="higher")),
        f"arrived_by_{horizon}": round(float(np.mean(steps <= horizon)), 3),
        f"arrived_by_{10 * horizon}": round(float(np.mean(arrived)), 3),
        f"gap_at_{horizon}": f"{np.median(gap[:, horizon]):.1e}",
        f"gap_at_{10 * horizon}": f"{np.median(gap[:, -1]):.1e}",
        f"largest_gap_at_{10 * horizon}": f"{np.max(gap[:, -1]):.1e}",
    }


def values(method, problems, x0, num_steps: int) -> np.ndarray:
    """F before every step and after the last, (instances, num_steps + 1) float64."""
    follow = jax.jit(jax.vmap(lambda problem, x: method(problem, x, num_steps)))
    return np.asarray(follow(problems, x0), np.float64)


def fista(problem, x0, num_steps: int, momentum: bool = True):
    """Beck and Teboulle, 2009; ISTA without momentum."""

    def step(carry, _):
        x, y, t = carry
        t_new = (1.0 + jnp.sqrt(1.0 + 4.0 * t**2)) / 2.0 if momentum else t
        x_new = soft_threshold(y - STEP_SIZE * GRAD(problem, y), STEP_SIZE * TASK.l1)
        y_new = x_new + (t - 1.0) / t_new * (x_new - x)
        return (x_new, y_new, t_new), VALUE(problem, x_new)

    _, rest = jax.lax.scan(step, (x0, x0, jnp.ones(())), length=num_steps)
    return jnp.concatenate([VALUE(problem, x0)[None], rest])


def learned(tx: optax.GradientTransformationExtraArgs, problem, x0, num_steps: int):
    def step(carry, _):
        y, state = carry
        updates, state = tx.update({"x": GRAD(problem, y["x"])}, state, y)
        y = optax.apply_updates(y, updates)
        return (y, state), VALUE(problem, y["x"])

    y0 = {"x": x0}
    _, rest = jax.lax.scan(step, (y0, tx.init(y0)), length=num_steps)
    return jnp.concatenate([VALUE(problem, x0)[None], rest])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
