"""From a run directory to a checkpoint."""

from pathlib import Path

from meta_train import run
from metaopt import checkpoint
from tasks import suites


def export(run_dir: Path, name: str, step: int | None = None) -> Path:
    """Writes the meta-parameters of a run as a checkpoint and returns its folder.

    The manifest says what they were meta-trained on, so that "held out" can be
    decided by code.

    Raises:
      UserError: if there is no run, no saved state, or theta is not finite.
    """
    recipe = run.read_recipe(run_dir)
    theta, step = run.read_theta(run_dir, step)
    num_problems = len(suites.build(recipe.suite))
    return checkpoint.save(
        name,
        recipe.optimizer,
        recipe.settings,
        theta,
        meta_trained_on=[task.traits() for task in suites.build(recipe.suite)],
        recipe=run.recipe_json(recipe),
        cost={
            "outer_steps": step,
            "inner_steps": step * 2 * recipe.num_pairs * recipe.window * num_problems,
        },
    )
