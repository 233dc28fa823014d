"""From a recipe to what a device runs: the first state, and one outer step."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from meta_train import checks, estimators, outer, strategies, warm_start
from meta_train.inner import episodes
from meta_train.outer import TrainState
from meta_train.recipe import Recipe
from metaopt.core import Learned
from metaopt.errors import UserError


class Compiled(NamedTuple):
    """A recipe as functions, jitted and not yet compiled.

    Attributes:
      init: ``() -> TrainState``, the state before the first outer step.
      dispatch: ``state -> (state, metrics)``, several outer steps; metrics (steps,); the state is donated.
    """

    init: Callable[[], TrainState]
    dispatch: Any  # what jax.jit returns, to be lowered


def build(recipe: Recipe, mesh: Mesh) -> Compiled:
    """Builds what a recipe describes, for the devices of ``mesh``.

    Raises:
      UserError: for settings that do not go with these devices, or with the checkpoint that is begun
        from; and, by name, for what is wrong with a task, family or estimator of the user's own.
    """
    learned, tasks = build_learned(recipe), recipe.build_tasks()
    checks.check(recipe, learned, tasks)
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(learned.init, jax.random.key(0))))
    if size >= 2**31:
        raise UserError(f"theta would have {size:,} entries: choose smaller settings of the family")
    window = recipe.estimator.window
    problems = [episodes.build(learned, task, recipe.episodes, window) for task in tasks]
    tx = outer.optimizer(recipe.outer)
    if recipe.strategy.name:
        theta = jax.eval_shape(learned.init, jax.random.key(0))
        tx = optax.chain(optax.clip_by_global_norm(recipe.outer.clip), tx)
        program = strategies.build(theta, problems, recipe.strategy, recipe.estimator, tx, mesh)
    else:
        name, options = recipe.estimator.name, recipe.estimator.options
        built = [estimators.build(name, problem, recipe.estimator, mesh, **options) for problem in problems]
        checks.check_estimators(recipe, learned, built, mesh.size)
        program = outer.build(built, tx, recipe.outer.clip)

    def init() -> TrainState:
        k_theta, k_run = jax.random.split(jax.random.key(recipe.outer.seed))
        return program.init(learned.init(k_theta), k_run)

    dispatch = outer.build_dispatch(program, recipe.run.steps_per_dispatch, mesh)
    return Compiled(jax.jit(init, out_shardings=outer.shardings(mesh)), dispatch)


def build_learned(recipe: Recipe) -> Learned:
    """What is meta-trained: fresh, or begun from a checkpoint."""
    return warm_start.learned(recipe.family) if recipe.family.start else recipe.build_family()
