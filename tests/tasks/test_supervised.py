"""The base of every task with a differentiable loss: what follows from the loss alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tasks.supervised import NUM_MEASURED, Supervised

KEY = jax.random.key(2)


@dataclasses.dataclass(frozen=True)
class Noisy(Supervised):
    """Only what has to be said: a loss of |x|^2 / 2 and noise, other noise for every split."""

    name: str = "noisy"

    def traits(self):
        return {"family": "noisy", "datasets": [], "architecture": {"dim": [2, 2]}}

    def init(self, task_params, key):
        return jax.random.normal(key, (2,))

    def loss(self, task_params, params, key, split="train"):
        return 0.5 * params @ params + jax.random.normal(jax.random.fold_in(key, len(split)))


def test_a_task_that_says_only_its_loss_is_whole():
    task, tx = Noisy(), optax.sgd(0.25)
    task_params = task.sample(KEY)
    assert task_params == () and task.solved_by == ("optimizer",)
    assert task.outputs((), jnp.ones(2), KEY) is None and task.unit_activity((), jnp.ones(2), KEY) is None
    x = task.init(task_params, KEY)
    state, loss = task.step(tx, task_params, task.start(tx, task_params, x), KEY)
    np.testing.assert_allclose(task.solution(state), 0.75 * x, rtol=1e-6)
    assert loss == task.loss((), x, KEY)  # of the batch, before the update


def test_the_thorough_measurement_is_the_mean_over_the_same_batches_at_every_call():
    task, x = Noisy(), jnp.array([1.0, 2.0])
    for split in ("train", "valid"):
        losses = [task.loss((), x, key, split) for key in jax.random.split(jax.random.key(0), NUM_MEASURED)]
        np.testing.assert_allclose(task.evaluate((), x, split)["loss"], np.mean(losses), rtol=1e-6)
        assert task.evaluate((), x, split)["loss"] == task.evaluate((), x, split, None)["loss"]
        assert task.evaluate((), x, split, KEY) == {"loss": task.loss((), x, KEY, split)}


def test_a_task_may_measure_more():
    class Thorough(Noisy):
        def measure(self, task_params, params, split):
            return {"loss": jnp.float32(7.0), "accuracy": jnp.float32(0.5)}

    task, x = Thorough(), jnp.zeros(2)
    assert task.evaluate((), x, "test") == {"loss": 7.0, "accuracy": 0.5}
    assert set(task.evaluate((), x, "test", KEY)) == {"loss"}


def test_what_a_task_has_not_said_is_named():
    class Empty(Supervised):
        name = "empty"

    for what in (
        lambda task: task.traits(),
        lambda task: task.init((), KEY),
        lambda task: task.loss((), jnp.zeros(2), KEY),
    ):
        with pytest.raises(NotImplementedError, match="Empty is a Supervised task and says no (traits|init|loss)"):
            what(Empty())


def test_an_optimizer_that_knows_no_further_arguments_is_given_none():
    def update(grads, state, params):  # would fail with any other
        return jax.tree.map(lambda g: -0.1 * g, grads), state

    task, tx = Noisy(), optax.GradientTransformation(lambda params: (), update)
    state, _ = task.step(tx, (), task.start(tx, (), jnp.array([3.0, -4.0])), KEY)
    np.testing.assert_allclose(state.params, [2.7, -3.6], rtol=1e-6)
