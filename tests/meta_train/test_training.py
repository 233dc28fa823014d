"""Meta-training from Python: with a run directory and without, callbacks, objects in the place of names."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import meta_train
from meta_train import Episodes, Estimation, Family, OuterLoop, Recipe, Run
from metaopt.core import Learned
from metaopt.errors import UserError
from tasks import Quadratic

tuned_sgd = Learned(
    init=lambda key: {"log_rate": jnp.log(0.05)},
    bind=lambda theta, num_steps=None: optax.sgd(jnp.exp(theta["log_rate"])),
)
RECIPE = Recipe(
    family=tuned_sgd,
    tasks=(Quadratic(dim=3),),
    episodes=Episodes(10, 20),
    estimator=Estimation(num_samples=8, window=5, sigma=0.1),
    outer=OuterLoop(outer_steps=20, warmup=2, learning_rate=0.05),
    run=Run(steps_per_dispatch=5, save_every=10),
)


@pytest.fixture(scope="module")
def result():
    return meta_train.train(RECIPE)


def test_objects_train_without_a_directory(result, tmp_path, monkeypatch):
    assert result.finished and set(result.theta) == {"log_rate"}
    assert result.metrics["step"].tolist() == list(range(1, 21))
    assert result.metrics["meta_loss"].shape == (20,) and np.isfinite(result.metrics["meta_loss"]).all()
    # A rate of 0.05 is far too low for curvatures of at most 1 over three dimensions.
    assert result.theta["log_rate"] > np.log(0.05) + 0.3
    np.testing.assert_allclose(result.metrics["theta/log_rate"][-1], result.theta["log_rate"])


def test_the_algorithm_of_a_result_is_what_its_family_binds(result):
    params = {"x": jnp.array([1.0, -2.0])}
    tx = result.algorithm(num_steps=10)
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(updates["x"], -np.exp(result.theta["log_rate"]) * params["x"], rtol=1e-6)


def test_a_directory_changes_no_number(result, tmp_path):
    on_disk = meta_train.train(RECIPE, tmp_path / "run")
    np.testing.assert_array_equal(on_disk.theta["log_rate"], result.theta["log_rate"])
    np.testing.assert_allclose(on_disk.metrics["meta_loss"], result.metrics["meta_loss"], rtol=1e-5)  # six digits
    assert on_disk.metrics["step"].tolist() == result.metrics["step"].tolist()


def test_a_callback_sees_every_dispatch_and_may_stop_the_run(result, tmp_path):
    seen = []

    def stop_at_ten(metrics):
        seen.append(metrics["step"].tolist())
        return metrics["step"][-1] >= 10

    stopped = meta_train.train(RECIPE, on_metrics=stop_at_ten)
    assert seen == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]
    assert not stopped.finished and stopped.metrics["step"].tolist() == list(range(1, 11))
    np.testing.assert_array_equal(stopped.metrics["meta_loss"], result.metrics["meta_loss"][:10])
    halfway = meta_train.train(RECIPE, tmp_path / "run", on_metrics=stop_at_ten)
    assert not halfway.finished
    np.testing.assert_array_equal(halfway.theta["log_rate"], stopped.theta["log_rate"])
    # It goes on, with the recipe that has its objects, to where the uninterrupted run ended.
    resumed = meta_train.resume(tmp_path / "run", RECIPE)
    assert resumed.finished
    np.testing.assert_array_equal(resumed.theta["log_rate"], result.theta["log_rate"])


def test_a_run_begun_with_objects_asks_for_them(tmp_path):
    meta_train.train(RECIPE, tmp_path / "run", on_metrics=lambda metrics: True)
    with pytest.raises(UserError, match=r"begun in Python with objects .*: go on there, with meta_train.resume\('"):
        meta_train.resume(tmp_path / "run")
    other = dataclasses.replace(RECIPE, outer=dataclasses.replace(RECIPE.outer, seed=1))
    with pytest.raises(UserError, match=r"another recipe: seed=0 \(asked for 1\)"):
        meta_train.resume(tmp_path / "run", other)


def test_a_kind_that_does_not_solve_a_task_is_refused_in_one_sentence():
    with pytest.raises(UserError, match="task quadratic is solved by optimizer, the family is of kind drift: choose"):
        Recipe(family=tuned_sgd._replace(kind="drift"), tasks=(Quadratic(),))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"family": "smal_fc"}, "unknown family 'smal_fc'; did you mean 'small_fc'?"),
        ({"family": 3}, "int is no family: give a metaopt.core.Learned"),
        ({"family": Family(tuned_sgd, {"rate": 1})}, "Learned is a Learned and takes no settings, got rate"),
        ({"tasks": "quadratic"}, "did you mean 'quadratics'?"),
        (
            {"tasks": (3,)},
            "int is no task: it lacks name, solved_by, traits, sample, init, start, step, solution, evaluate",
        ),
        ({"estimator": 3}, "3 is no estimator: give a constructor"),
        ({"estimator": Estimation(num_samples=8, window=11)}, "window cannot be longer than the shortest episode"),
        ({"strategy": "cma"}, "unknown strategy 'cma'; did you mean 'cma_es'?"),
        ({"run": Run(3, 9)}, "multiples of steps_per_dispatch, got 20, 9 and 3"),
    ],
)
def test_mistakes_in_a_recipe(changes, message):
    with pytest.raises(UserError) as error:
        dataclasses.replace(RECIPE, **changes)
    assert message in str(error.value)


def test_a_setting_that_json_cannot_hold_is_named(tmp_path):
    def family(scale=None):
        return tuned_sgd

    recipe = dataclasses.replace(RECIPE, family=Family(family, {"scale": jnp.zeros(())}))
    with pytest.raises(UserError, match="settings.scale must be a plain value that JSON can hold"):
        meta_train.train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
