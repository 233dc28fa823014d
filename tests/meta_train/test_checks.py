"""What is wrong with a user's own task, family or estimator is said by name, before anything runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metaopt
from meta_train import Episodes, Estimation, Recipe, program
from meta_train.estimators import es
from meta_train.parallel import devices
from metaopt.core import Estimator, Learned
from metaopt.errors import UserError
from tasks import Quadratic, Supervised

sgd = Learned(
    lambda key: {"log_rate": jnp.zeros(())}, lambda theta, num_steps=None: optax.sgd(jnp.exp(theta["log_rate"]))
)


@dataclasses.dataclass(frozen=True)
class Line(Supervised):
    """A task of a user's own, in order."""

    name: str = "line"

    def traits(self):
        return {"family": "line", "datasets": [], "architecture": {}}

    def init(self, task_params, key):
        return jax.random.normal(key, (2,))

    def loss(self, task_params, params, key, split="train"):
        return jnp.sum(params**2)


class NoLoss(Line):
    def evaluate(self, task_params, x, split, key=None):
        return {"accuracy": jnp.zeros(())}


class LossIsNoScalar(Line):
    def step(self, algorithm, task_params, state, key):
        state, loss = super().step(algorithm, task_params, state, key)
        return state, loss[None]


class MeasureIsNoScalar(Line):
    def evaluate(self, task_params, x, split, key=None):
        return {"loss": jnp.sum(x), "errors": x}


class StateChanges(Line):
    def step(self, algorithm, task_params, state, key):
        state, loss = super().step(algorithm, task_params, state, key)
        return state._replace(params=state.params.astype(jnp.bfloat16)), loss


class LossAlone(Line):
    def step(self, algorithm, task_params, state, key):
        return super().step(algorithm, task_params, state, key)[1]


class Impure(Line):
    def init(self, task_params, key):
        return jnp.asarray(np.random.randn(2), jnp.float32)


class Remembers(Line):
    calls = [0]

    def loss(self, task_params, params, key, split="train"):
        self.calls[0] += 1
        return self.calls[0] * jnp.sum(params**2)


class NeedsAKey(Line):
    def evaluate(self, task_params, x, split, key=None):
        return {"loss": jax.random.normal(key, ())}


class Raises(Line):
    def init(self, task_params, key):
        return jnp.zeros(2) @ jnp.zeros(3)


class NoTraits(Line):
    def traits(self):
        return {"family": "line"}


def solve(task=None, family=sgd, estimator="pes"):
    sampling = Estimation(name=estimator, num_samples=8, window=5, sigma=0.1)
    recipe = Recipe(family=family, tasks=(task or Line(),), episodes=Episodes(10, 20), estimator=sampling)
    return program.build(recipe, devices.mesh())


def test_a_task_in_order_is_built():
    solve()


@pytest.mark.parametrize(
    "task, message",
    [
        (
            NoLoss,
            "line: evaluate(..., 'train', key) must return a dict with \"loss\", the smaller the better; has accuracy",
        ),
        (LossIsNoScalar, "line: the loss that step returns must be a scalar float, it is float32[1]"),
        (MeasureIsNoScalar, "'errors' must be a scalar float, it is float32[2]"),
        (StateChanges, "line: the state changes at 'params': float32[2] from start, bfloat16[2] from step"),
        (LossAlone, "line: step returns (state, loss), this one ShapeDtypeStruct"),
        (Impure, "line: init is not pure: called twice with the same arguments it does two things; take randomness"),
        (Remembers, "line: step is not pure"),
        (NeedsAKey, "line: evaluate(..., 'train', None) fails at "),
        (Raises, "line: init fails at "),
        (NoTraits, "line: traits must have 'datasets', a list"),
    ],
)
def test_what_is_wrong_with_a_task(task, message):
    with pytest.raises(UserError) as error:
        solve(task())
    assert str(error.value).startswith("task line: ") and message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_evaluation_says_it_too():
    with pytest.raises(UserError, match=r"task line: evaluate\(..., 'train', key\) must return a dict"):
        metaopt.evaluate({"sgd": lambda num_steps: optax.sgd(0.1)}, [NoLoss()], baselines=(), num_steps=20, seeds=2)


def test_two_tasks_of_one_name_are_refused():
    with pytest.raises(UserError, match="two tasks are called 'line'"):
        program.build(Recipe(family=sgd, tasks=(Line(), Line())), devices.mesh())


@pytest.mark.parametrize(
    "init, message",
    [
        (lambda key: {}, "family Learned: init returns no meta-parameters"),
        (lambda key: {"a": jnp.zeros(3) @ jnp.zeros(2)}, "family Learned: init fails at "),
    ],
)
def test_what_is_wrong_with_a_family(init, message):
    with pytest.raises(UserError) as error:
        solve(family=Learned(init, sgd.bind))
    assert message in str(error.value)


def changed_pes(init=None, estimate=None):
    def build(problem, config, mesh):
        pes = es.pes(problem, config, mesh)
        ours = lambda theta, state, outer_step: estimate(*pes.estimate(theta, state, outer_step))
        return Estimator(init or pes.init, ours if estimate else pes.estimate)

    return build


@pytest.mark.parametrize(
    "estimator, message",
    [
        (lambda problem, config, mesh: 3, "its constructor returns a metaopt.core.Estimator, this one int"),
        (
            changed_pes(init=lambda theta, key: {"count": jnp.zeros((), jnp.int32)}),
            "the state at 'count' has shape (), it lacks the sample axis: every leaf begins with",
        ),
        (changed_pes(estimate=lambda grad, state, metrics: (grad, state)), "estimate returns (grad, state, metrics)"),
        (changed_pes(estimate=lambda grad, state, metrics: (grad, state, {})), "its metrics lack 'meta_loss'"),
        (
            changed_pes(estimate=lambda grad, state, metrics: ({"rate": 0.0 * grad["log_rate"]}, state, metrics)),
            "the gradient changes at 'log_rate': float32[] from theta, nothing from estimate",
        ),
    ],
)
def test_what_is_wrong_with_an_estimator(estimator, message):
    with pytest.raises(UserError) as error:
        solve(estimator=estimator)
    assert message in str(error.value)


def test_ours_are_not_traced_twice(monkeypatch):
    monkeypatch.setattr("metaopt.checks.trace", None)
    recipe = Recipe(family="hand", tasks=(Quadratic(dim=2),), estimator=Estimation(num_samples=8))
    program.build(recipe, devices.mesh())
