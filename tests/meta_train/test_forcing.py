"""Progressive expert forcing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from meta_train.inner import forcing, supervised
from meta_train.inner.forcing import Expert
from meta_train.inner.horizon import Horizon
from metaopt import optimizers
from metaopt.errors import UserError
from tasks.quadratic import Quadratic

EXPERT = Expert(rule="sgd", learning_rate=0.3, until=10, gone=30, imitation=0.5)
TASK = Quadratic(dim=3)
LEARNED = optimizers.build("hand", rule="sgd", learning_rate=0.1)
THETA = LEARNED.init(jax.random.key(0))


def test_the_expert_leads_then_fades():
    np.testing.assert_allclose([EXPERT.weight(s) for s in (0, 10, 15, 20, 30, 99)], [1, 1, 0.75, 0.5, 0, 0])


def step_of(expert, outer_step):
    """One inner step: parameters before and after, and the recorded loss."""
    config = supervised.Config(Horizon(5, 5), split="train", objective="linear", expert=expert)
    problem = supervised.build(LEARNED, TASK, config)
    before = problem.reset(THETA, jax.random.key(1), outer_step)
    after, loss = problem.step(THETA, before)
    return before.inner.params["x"], after.inner.params["x"], loss


@pytest.mark.parametrize("outer_step, rate", [(0, 0.3), (20, 0.2), (50, 0.1)])
def test_parameters_move_by_the_blend(outer_step, rate):
    start, moved, loss = step_of(EXPERT, outer_step)
    _, alone, plain = step_of(None, outer_step)
    np.testing.assert_allclose(moved - start, (alone - start) * rate / 0.1, rtol=1e-5, atol=1e-6)
    # Both step along the gradient: nothing to imitate, only the task's share of the loss is left.
    np.testing.assert_allclose(loss, (1 - 0.5 * EXPERT.weight(outer_step)) * plain, rtol=1e-5, atol=1e-6)


def test_directions_are_compared_over_all_parameters():
    one, other = {"a": jnp.array([3.0, 0.0]), "b": jnp.array(4.0)}, {"a": jnp.array([0.0, 5.0]), "b": jnp.array(12.0)}
    np.testing.assert_allclose(forcing.disagreement(one, other), 1 - 48 / (5 * 13), rtol=1e-6)
    np.testing.assert_allclose(forcing.disagreement(one, jax.tree.map(jnp.negative, one)), 2.0, rtol=1e-6)


def test_the_expert_is_an_ordinary_optimizer_with_its_own_state():
    config = supervised.Config(Horizon(5, 5), expert=Expert(rule="adamw", learning_rate=0.05, until=5, gone=6))
    problem = supervised.build(LEARNED, TASK, config)
    episode = problem.reset(THETA, jax.random.key(1), 0)
    params, task_params = episode.inner.params, episode.problem.task_params
    tx = optax.adamw(0.05, weight_decay=1e-4)
    state = tx.init(params)
    for _ in range(3):
        episode, _ = problem.step(THETA, episode)
        grads = jax.grad(TASK.loss, argnums=1)(task_params, params, jax.random.key(0))
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    # Decays go through log(1 - b) in float32: a few units in the last place.
    np.testing.assert_allclose(episode.inner.params["x"], params["x"], atol=2e-6)


@pytest.mark.parametrize("bad", [{"until": 5, "gone": 5}, {"imitation": 2.0}])
def test_impossible_experts_are_refused(bad):
    with pytest.raises(UserError, match="until < gone|imitation"):
        Expert(**bad)
