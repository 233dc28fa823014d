"""What the replay buffer and expert forcing are worth on a small recipe.

``digits-quick`` with and without each, several meta-training seeds; every result is
evaluated within its longest horizon and at four times as many steps as it ever saw.
Rows hold the validation loss at the end of training, the median over fresh seeds, for
each meta-training seed.
"""

import contextlib
import json
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

SEEDS, HORIZONS, REPORT_SEEDS = (0, 1, 2), (500, 2000), 8
VARIANTS = {
    "plain": [],
    "replay": ["replay=2", "replay_fresh=0.2"],
    "expert": ["expert.rule=adamw", "expert.learning_rate=3e-3", "expert.until=30", "expert.gone=150"],
    "expert, no imitation": [
        *["expert.rule=adamw", "expert.learning_rate=3e-3", "expert.until=30", "expert.gone=150"],
        "expert.imitation=0.0",
    ],
}


def main(num_devices: int) -> None:
    jax.config.update("jax_num_cpu_devices", num_devices)
    for name, changes in VARIANTS.items():
        losses = {horizon: [] for horizon in HORIZONS}
        for seed in SEEDS:
            optimizer, theta = meta_train([*changes, f"seed={seed}"])
            for horizon in HORIZONS:
                losses[horizon].append(validation_loss(optimizer, theta, horizon))
        row = {"bench": "ablations", "variant": name}
        row |= {f"valid_after_{h}": " ".join(f"{loss:.3f}" for loss in sorted(losses[h])) for h in HORIZONS}
        print(json.dumps(row), flush=True)


def meta_train(changes: list[str]):
    from meta_train import recipe as recipes
    from meta_train import run

    recipe = recipes.override(recipes.find("digits-quick"), changes)
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(sys.stderr):
            run.start(recipe, Path(folder) / "run")
            theta, _ = run.read_theta(Path(folder) / "run")
    return recipe.learned_optimizer(), theta


def validation_loss(optimizer, theta, num_steps: int) -> float:
    from metaopt.evaluation import run
    from tasks import suites

    (task,) = suites.build("digits")
    trainer = run.trainer(task, lambda rate: optimizer.bind(theta, num_steps=num_steps), num_steps, num_steps // 10)
    keys = jax.random.split(jax.random.key(77), REPORT_SEEDS)
    curves = trainer(jax.numpy.ones(1), jax.random.key(0), keys)
    return float(np.median(np.asarray(curves.valid)[0, :, -1]))


if __name__ == "__main__":
    main(int(sys.argv[1]))
