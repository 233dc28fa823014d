"""Bootstrapped meta-gradients; that one plain step is the ordinary one is in test_identities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_train.estimators import bmg
from meta_train.estimators.samples import Sampling
from meta_train.inner import episodes
from meta_train.inner.episodes import Episodes
from meta_train.parallel import devices
from metaopt import families
from metaopt.errors import UserError
from tasks import ImageMLP
from tasks.quadratic import Quadratic
from tests.meta_train.problems import THETA, linear_system, run_windows

CONFIG = Sampling(num_samples=1, window=3, sigma=0.0, staggered=False)


@pytest.mark.parametrize("ahead", [0, 2])
def test_the_target_is_where_training_leads(ahead):
    """The linear system by hand: x after the window, y after ``ahead`` more, one gradient step from y."""
    problem, rate = linear_system(6), 0.25
    grads, metrics = run_windows("bmg", problem, CONFIG, 1, ahead=ahead, target_rate=rate)

    def unroll(theta, num_steps):
        episode = problem.reset(theta, jax.random.key(0), 0)
        for _ in range(num_steps):
            episode, _ = problem.step(theta, episode)
        return episode.inner

    y = unroll(THETA, 3 + ahead)
    target = y - rate * jax.grad(lambda x: problem.learner.loss(None, x))(y)
    distance = lambda theta: 0.5 * jnp.sum((target - unroll(theta, 3)) ** 2) / rate
    np.testing.assert_allclose(grads[0], jax.grad(distance)(THETA), rtol=1e-5)
    np.testing.assert_allclose(metrics["matching"][0], distance(THETA), rtol=1e-5)
    assert metrics["inner_steps"][0] == 3 + ahead


def test_kl_by_hand():
    """The target's outputs are the first argument: KL(target || x), mean over the batch."""
    learner = linear_system(6).learner
    ours, target = jnp.array([0.0, 1.0]), jnp.array([1.0, -1.0])
    p, q = jax.nn.softmax(target), jax.nn.softmax(ours)
    expected = float(jnp.sum(p * jnp.log(p / q)))
    np.testing.assert_allclose(bmg.MATCHINGS["kl"](learner, None, target, ours), expected, rtol=1e-6)


def test_a_timid_learning_rate_is_raised():
    """A classifier that runs ahead has learned more: both matchings ask for a larger rate."""
    optimizer = families.build("hand", rule="sgd", learning_rate=0.01)
    config = Episodes(6, 6, split="train", objective="linear")
    problem = episodes.build(optimizer, ImageMLP(width=8), config)
    theta = optimizer.init(jax.random.key(0))
    for matching in ("kl", "parameters"):
        grads, _ = run_windows("bmg", problem, CONFIG, 2, theta=theta, ahead=3, target_rate=0.1, matching=matching)
        assert (grads["log_learning_rate"] < 0).all()


def test_what_cannot_be_matched_is_refused():
    quadratic = episodes.build(families.build("hand"), Quadratic(dim=3), Episodes(5, 5))
    for problem, options, message in [
        (quadratic, {"matching": "kl"}, "take matching=parameters"),
        (quadratic._replace(learner=None), {}, "set InnerProblem.learner"),
        (quadratic, {"matching": "kll"}, "did you mean 'kl'"),
        (quadratic, {"target_rate": 0.0}, "target_rate > 0"),
    ]:
        with pytest.raises(UserError, match=message):
            bmg.bmg(problem, CONFIG, devices.mesh(1), **options)
