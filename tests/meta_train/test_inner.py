"""Horizons, recorded losses, and the inner problem of a learned algorithm on a task."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from meta_train.inner import episodes, recorded
from meta_train.inner.episodes import Episodes
from meta_train.inner.horizon import Horizon
from metaopt import families
from metaopt.core import Learned
from metaopt.errors import UserError
from tasks import ImageMLP, Quadratic, Supervised

KEYS = jax.random.split(jax.random.key(0), 4000)


def lengths_of(horizon, window=1, outer_step=0):
    return np.asarray(jax.vmap(lambda key: horizon.sample(key, window, outer_step))(KEYS))


def test_horizons_are_log_uniform_multiples_within_bounds():
    lengths = lengths_of(Horizon(100, 1000), window=50)
    assert lengths.min() == 100 and lengths.max() == 1000 and set(lengths % 50) == {0}
    # E[log T] is the middle of the bounds; rounding to 50 shifts it by less than 1 %.
    np.testing.assert_allclose(np.log(lengths).mean(), np.log(100_000) / 2, rtol=0.01)


def test_equal_bounds_are_a_constant():
    assert set(lengths_of(Horizon(30, 30), window=10)) == {30}


def test_uniform_horizons():
    lengths = lengths_of(Horizon(100, 1000, "uniform"), window=50)
    assert lengths.min() == 100 and lengths.max() == 1000 and set(lengths % 50) == {0}
    # Standard deviation 260, 4,000 draws: four standard errors.
    np.testing.assert_allclose(lengths.mean(), 550, atol=17)


@pytest.mark.parametrize("distribution", ["log_uniform", "uniform"])
def test_a_curriculum_grows_by_the_same_factor(distribution):
    horizon = Horizon(100, 1600, distribution, growth=40)
    longest = [lengths_of(horizon, outer_step=s).max() for s in (0, 10, 20, 40, 80)]
    np.testing.assert_allclose(longest, [100, 200, 400, 1600, 1600], rtol=0.01)  # the largest of 4,000 draws


def test_the_bound_is_reached_and_not_passed():
    horizon = Horizon(30, 44)
    assert lengths_of(horizon, window=10).max() == horizon.bound(10) == 40
    problem = episodes.build(families.build("hand"), Quadratic(dim=3), Episodes(30, 44), window=10)
    assert problem.longest == 40


@pytest.mark.parametrize("bad", [(0, 10), (10, 5)])
def test_impossible_horizons_are_refused(bad):
    with pytest.raises(UserError, match="1 <= shortest <= longest"):
        Horizon(*bad)


def test_a_window_longer_than_an_episode_is_refused():
    with pytest.raises(UserError, match="set shortest=50 or more, or window=10 or less, got window 50, shortest 10"):
        episodes.build(families.build("hand"), Quadratic(dim=3), Episodes(10, 20), window=50)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_an_episode_is_plain_training(split):
    """The inner problem does what a loop of value_and_grad and update does."""
    task, optimizer = Quadratic(dim=3), families.build("hand", rule="momentum", learning_rate=0.1)
    config = Episodes(5, 5, split=split, objective="linear")
    problem, theta = episodes.build(optimizer, task, config), optimizer.init(jax.random.key(0))
    episode = problem.reset(theta, jax.random.key(1), 0)
    (task_params, first), params = episode.problem, episode.inner.params
    tx = optimizer.bind(theta)
    state = tx.init(params)
    for _ in range(3):
        before, grads = jax.value_and_grad(task.loss, argnums=1)(task_params, params, jax.random.key(0))
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        after = task.loss(task_params, params, jax.random.key(0))
        episode, loss = problem.step(theta, episode)
        np.testing.assert_allclose(loss, (before if split == "train" else after) / first, rtol=1e-5)
    np.testing.assert_allclose(episode.inner.params["x"], params["x"], rtol=1e-5)
    assert episode.step == 3 and episode.horizon == 5


@pytest.mark.parametrize(
    "name, loss, first_loss, expected, worst",
    [
        ("linear", 3.0, 2.0, 1.5, 2.0),
        ("linear", -3.0, 2.0, 0.0, 2.0),
        ("log", 3.0, 2.0, np.log(1.51), np.log(2.01)),
        ("log", -3.0, 2.0, np.log(0.01), np.log(2.01)),
        ("raw", 3.0, (), 3.0, np.inf),
        ("raw", -3.0, (), -3.0, np.inf),
    ],
)
def test_the_recorded_loss_by_hand(name, loss, first_loss, expected, worst):
    form = recorded.FORMS[name]
    np.testing.assert_allclose(form.record(jnp.float32(loss), first_loss), expected, rtol=1e-6)
    np.testing.assert_allclose(form.worst(), worst, rtol=1e-6)


@pytest.mark.parametrize("objective", sorted(recorded.FORMS))
def test_an_episode_records_in_the_form_that_is_asked_for(objective):
    task, optimizer = Quadratic(dim=3), families.build("hand")
    theta = optimizer.init(jax.random.key(0))
    problem = episodes.build(optimizer, task, Episodes(5, 5, objective=objective))
    episode = problem.reset(theta, jax.random.key(1), 0)
    first = task.loss(episode.problem.task_params, episode.inner.params, jax.random.key(0))
    ended, loss = problem.step(theta, episode)
    after = task.loss(ended.problem.task_params, ended.inner.params, jax.random.key(0))
    expected = {"linear": after / first, "log": jnp.log(after / first + recorded.LOG_FLOOR), "raw": after}[objective]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(problem.final(ended), expected, rtol=1e-5)
    assert problem.worst == recorded.FORMS[objective].worst()
    assert isinstance(episode.problem.first_loss, tuple) == (objective == "raw")  # () where nothing looks at it


@dataclasses.dataclass(frozen=True)
class Return(Supervised):
    """The loss is a return with its sign changed: -x, from x = 1."""

    name: str = "return"

    def init(self, task_params, key):
        return jnp.ones(())

    def loss(self, task_params, params, key, split="train"):
        return -params


@pytest.mark.parametrize("objective, sign", [("raw", -1.0), ("linear", 1.0)])
def test_a_better_return_lowers_the_raw_meta_loss(objective, sign):
    """SGD at rate r is at 1 + t r after t steps: of three steps the mean loss is -(1 + 2 r) as it is.

    Relative to the first loss, which is -1, it has the other sign: the worse return would win.
    """
    rate, optimizer = 0.25, families.build("hand", rule="sgd", learning_rate=0.25)
    problem = episodes.build(optimizer, Return(), Episodes(3, 3, objective=objective))

    @jax.value_and_grad
    def meta_loss(theta):
        start = problem.reset(theta, jax.random.key(1), 0)
        return jnp.mean(jax.lax.scan(lambda e, _: problem.step(theta, e), start, length=3)[1])

    loss, grad = meta_loss(optimizer.init(jax.random.key(0)))
    np.testing.assert_allclose(loss, sign * (1 + 2 * rate), rtol=1e-6)
    np.testing.assert_allclose(grad["log_learning_rate"], sign * 2 * rate, rtol=1e-5)


def test_the_optimizer_is_given_the_loss_it_has_the_gradient_of():
    def update(grads, state, params, *, value, value_fn, key, activations):
        assert key.shape == () and activations is None
        again, more = jax.value_and_grad(value_fn)(params)
        return optax.tree.sub(more, grads), (again - value, jax.tree.map(jnp.subtract, more, grads))

    tx = optax.GradientTransformationExtraArgs(lambda params: (jnp.ones(()), params), update)
    optimizer = Learned(lambda key: {}, lambda theta, num_steps: tx)
    # Noise tells whether it is the same batch.
    problem = episodes.build(optimizer, Quadratic(dim=3, noise=1.0), Episodes(5, 5))
    episode, _ = problem.step({}, problem.reset({}, jax.random.key(1), 0))
    assert all(np.all(x == 0.0) for x in jax.tree.leaves(episode.inner.opt_state))


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"objective": "lin"}, "unknown objective 'lin'; did you mean 'linear'"),
        ({"split": "test"}, "unknown split 'test'"),
        ({"distribution": "uniforn"}, "did you mean 'uniform'"),
        ({"growth": -1}, "growth is a number of outer steps, got -1"),
    ],
)
def test_unknown_settings_are_refused(bad, message):
    with pytest.raises(UserError, match=message):
        Episodes(5, 5, **bad)


def test_what_does_not_solve_the_task_is_refused():
    drift = Learned(lambda key: {}, lambda theta, num_steps=None: None, kind="drift")
    with pytest.raises(UserError, match="task quadratic is solved by optimizer, the family is of kind drift"):
        episodes.build(drift, Quadratic(dim=3), Episodes(5, 5))

    class Agent(Quadratic):
        solved_by = ("drift",)

    with pytest.raises(UserError, match="first_order=True is for optimizers: set it to False for a drift"):
        episodes.build(drift, Agent(dim=3), Episodes(5, 5, first_order=True))


def test_first_order_leaves_out_second_derivatives():
    """One SGD step on a quadratic: the loss after two steps with and without d grad / d params."""
    task, optimizer = Quadratic(dim=3), families.build("hand", rule="sgd", learning_rate=0.1)
    theta = optimizer.init(jax.random.key(0))
    config = lambda first_order: Episodes(5, 5, objective="linear", first_order=first_order)

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
    problem = episodes.build(optimizer, task, Episodes(5, 5, objective="linear"))
    episode = problem.reset(optimizer.init(jax.random.key(0)), jax.random.key(1), 0)
    np.testing.assert_allclose(problem.final(episode), 1.0, rtol=1e-6)  # relative to the start
    noisy = episodes.build(optimizer, task, Episodes(5, 5, split="train", objective="linear"))
    values = [noisy.final(episode._replace(step=jnp.int32(s))) for s in range(3)]
    assert len({float(v) for v in values}) == 3  # every step its own batches


def test_what_estimators_may_know_of_the_learner():
    """Parameters, the loss on the batch of the step, and logits where the task has some."""
    optimizer = families.build("hand")
    theta = optimizer.init(jax.random.key(0))
    for task, has_outputs in ((ImageMLP(width=3, batch_size=4), True), (Quadratic(dim=3, noise=1.0), False)):
        problem = episodes.build(optimizer, task, Episodes(5, 5, split="train", objective="raw"))
        episode = problem.reset(theta, jax.random.key(1), 0)
        params = problem.learner.params(episode)
        jax.tree.map(np.testing.assert_array_equal, params, task.solution(episode.inner))
        np.testing.assert_allclose(problem.learner.loss(episode, params), problem.step(theta, episode)[1], rtol=1e-6)
        assert (problem.learner.outputs is not None) == has_outputs
        if has_outputs:
            assert problem.learner.outputs(episode, params).shape == (4, 10)

    quadratic = Quadratic(dim=3)
    methods = ("name", "solved_by", "sample", "init", "start", "step", "solution", "evaluate")
    not_supervised = types.SimpleNamespace(**{name: getattr(quadratic, name) for name in methods})
    assert episodes.build(optimizer, not_supervised, Episodes(5, 5)).learner is None
