"""Horizons and the supervised inner problem."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from meta_train.inner import episodes
from meta_train.inner.horizon import Horizon
from metaopt import families
from metaopt.core import Learned
from metaopt.errors import UserError
from tasks.quadratic import Quadratic

KEYS = jax.random.split(jax.random.key(0), 4000)


def test_horizons_are_log_uniform_multiples_within_bounds():
    lengths = np.asarray(jax.vmap(Horizon(100, 1000, 50).sample)(KEYS))
    assert lengths.min() == 100 and lengths.max() == 1000 and set(lengths % 50) == {0}
    # E[log T] is the middle of the bounds; rounding to 50 shifts it by less than 1 %.
    np.testing.assert_allclose(np.log(lengths).mean(), np.log(100_000) / 2, rtol=0.01)


def test_equal_bounds_are_a_constant():
    assert set(np.asarray(jax.vmap(Horizon(30, 30, 10).sample)(KEYS[:50]))) == {30}


def test_uniform_horizons():
    lengths = np.asarray(jax.vmap(Horizon(100, 1000, 50, "uniform").sample)(KEYS))
    assert lengths.min() == 100 and lengths.max() == 1000 and set(lengths % 50) == {0}
    # Standard deviation 260, 4,000 draws: four standard errors.
    np.testing.assert_allclose(lengths.mean(), 550, atol=17)


@pytest.mark.parametrize("distribution", ["log_uniform", "uniform"])
def test_a_curriculum_grows_by_the_same_factor(distribution):
    horizon = Horizon(100, 1600, 1, distribution, growth=40)
    longest = [int(jax.vmap(lambda k, s=s: horizon.sample(k, s))(KEYS).max()) for s in (0, 10, 20, 40, 80)]
    np.testing.assert_allclose(longest, [100, 200, 400, 1600, 1600], rtol=0.01)  # the largest of 4,000 draws


def test_the_bound_is_reached_and_not_passed():
    horizon = Horizon(30, 44, 10)
    assert jax.vmap(horizon.sample)(KEYS).max() == horizon.bound == 40


@pytest.mark.parametrize("bad", [(0, 10, 1), (10, 5, 1), (10, 20, 50)])
def test_impossible_horizons_are_refused(bad):
    with pytest.raises(UserError, match="1 <= window <= shortest <= longest"):
        Horizon(*bad)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_an_episode_is_plain_training(split):
    """The inner problem does what a loop of value_and_grad and update does."""
    task, optimizer = Quadratic(dim=3), families.build("hand", rule="momentum", learning_rate=0.1)
    config = episodes.Config(Horizon(5, 5), split=split, objective="linear")
    problem, theta = episodes.build(optimizer, task, config), optimizer.init(jax.random.key(0))
    episode = problem.reset(theta, jax.random.key(1), 0)
    (task_params, first, _), params = episode.problem, episode.inner.params
    tx = optimizer.bind(theta)
    state = tx.init(params)
    for _ in range(3):
        before, grads = jax.value_and_grad(task.loss, argnums=1)(task_params, params, jax.random.key(0))
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        after = task.loss(task_params, params, jax.random.key(0))
        episode, recorded = problem.step(theta, episode)
        np.testing.assert_allclose(recorded, (before if split == "train" else after) / first, rtol=1e-5)
    np.testing.assert_allclose(episode.inner.params["x"], params["x"], rtol=1e-5)
    assert episode.step == 3 and episode.horizon == 5


def test_the_log_objective_is_the_log_of_the_linear_one():
    task, optimizer = Quadratic(dim=3), families.build("hand")
    theta, losses = optimizer.init(jax.random.key(0)), []
    for objective in ("linear", "log"):
        problem = episodes.build(optimizer, task, episodes.Config(Horizon(5, 5), objective=objective))
        losses.append(problem.step(theta, problem.reset(theta, jax.random.key(1), 0))[1])
    np.testing.assert_allclose(losses[1], jnp.log(losses[0] + episodes.LOG_FLOOR), rtol=1e-5)


def test_the_optimizer_is_given_the_loss_it_has_the_gradient_of():
    def update(grads, state, params, *, value, value_fn):
        again, more = jax.value_and_grad(value_fn)(params)
        return optax.tree.sub(more, grads), (again - value, jax.tree.map(jnp.subtract, more, grads))

    tx = optax.GradientTransformationExtraArgs(lambda params: (jnp.ones(()), params), update)
    optimizer = Learned(lambda key: {}, lambda theta, num_steps: tx)
    # Noise tells whether it is the same batch.
    problem = episodes.build(optimizer, Quadratic(dim=3, noise=1.0), episodes.Config(Horizon(5, 5)))
    episode, _ = problem.step({}, problem.reset({}, jax.random.key(1), 0))
    assert all(np.all(x == 0.0) for x in jax.tree.leaves(episode.inner.state))


@pytest.mark.parametrize("bad", [{"objective": "best"}, {"split": "test"}])
def test_unknown_settings_are_refused(bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        episodes.Config(Horizon(5, 5), **bad)


def test_first_order_leaves_out_second_derivatives():
    """One SGD step on a quadratic: the loss after two steps with and without d grad / d params."""
    task, optimizer = Quadratic(dim=3), families.build("hand", rule="sgd", learning_rate=0.1)
    theta = optimizer.init(jax.random.key(0))
    config = lambda first_order: episodes.Config(Horizon(5, 5), objective="linear", first_order=first_order)

    def loss(theta, first_order):
        problem = episodes.build(optimizer, task, config(first_order))
        episode = problem.reset(theta, jax.random.key(1), 0)
        episode, _ = problem.step(theta, episode)
        return problem.step(theta, episode)[1]

    episode = episodes.build(optimizer, task, config(False)).reset(theta, jax.random.key(1), 0)
    (hessian, optimum), first = episode.problem.task_params, episode.problem.first_loss
    hessian, rate, gap = hessian / 3, 0.1, episode.inner.params["x"] - optimum
    once = gap - rate * hessian @ gap
    twice = once - rate * hessian @ once
    # d twice / d rate: both gradients as constants, or the second one through the first step too.
    constant = -(hessian @ gap) - hessian @ once
    whole = constant + rate * hessian @ hessian @ gap
    for first_order, slope in ((True, constant), (False, whole)):
        grad = jax.grad(loss)(theta, first_order)["log_learning_rate"]
        np.testing.assert_allclose(grad, rate * slope @ hessian @ twice / first, rtol=1e-4)


def test_a_state_is_measured_on_fresh_batches_of_the_split():
    """Noisy training loss, noiseless validation: ten fresh batches of the latter are exact."""
    task, optimizer = Quadratic(dim=3, noise=0.05), families.build("hand")
    problem = episodes.build(optimizer, task, episodes.Config(Horizon(5, 5), objective="linear"))
    episode = problem.reset(optimizer.init(jax.random.key(0)), jax.random.key(1), 0)
    np.testing.assert_allclose(problem.final(episode), 1.0, rtol=1e-6)  # relative to the start
    noisy = episodes.build(optimizer, task, episodes.Config(Horizon(5, 5), split="train", objective="linear"))
    values = [noisy.final(episode._replace(step=jnp.int32(s))) for s in range(3)]
    assert len({float(v) for v in values}) == 3  # every step its own batches
