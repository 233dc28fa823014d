"""A toy of every kind of learned algorithm goes the whole way: train, stop, resume, export, load, evaluate."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import meta_train
import metaopt
from meta_train import recipes, settings, training
from meta_train.run.export import export
from metaopt import families, references
from metaopt.errors import UserError

TOYS = Path(__file__).parents[1] / "toys"
KINDS = {
    "bandit": "drift",
    "forecaster": "forecast",
    "gain": "optimizer",
    "genetic": "search",
    "update_rule": "update_rule",
}
SHORT = ["num_samples=8", "outer_steps=4", "warmup=1", "steps_per_dispatch=2", "save_every=2"]


def test_every_kind_has_a_toy():
    assert sorted(KINDS.values()) == sorted(families.KINDS)


@pytest.fixture(scope="module", params=sorted(KINDS))
def toy(request, tmp_path_factory):
    """The toy's file; a run of it in one go; one that was stopped halfway and resumed; its checkpoint."""
    file, folder = TOYS / f"{request.param}.py", tmp_path_factory.mktemp(request.param)
    recipe = settings.override(recipes.find(str(file)), SHORT)
    whole = meta_train.train(recipe, folder / "whole", source=str(file))
    half = meta_train.train(recipe, folder / "half", lambda metrics: True, source=str(file))
    assert whole.finished and not half.finished
    resumed = meta_train.resume(folder / "half")  # by the run directory alone
    export(folder / "half", folder / "toy")
    return request.param, file, whole, resumed, folder / "toy"


def test_resumed_is_uninterrupted(toy):
    _, _, whole, resumed, _ = toy
    assert resumed.finished and resumed.metrics["step"].tolist() == [1, 2, 3, 4]
    assert np.isfinite(whole.metrics["meta_loss"]).all()
    jax.tree.map(np.testing.assert_array_equal, whole.theta, resumed.theta)
    np.testing.assert_array_equal(whole.metrics["meta_loss"], resumed.metrics["meta_loss"])


def test_a_checkpoint_has_its_kind_and_loads_with_its_family(toy):
    name, file, whole, _, folder = toy
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["kind"] == KINDS[name] and manifest["family"].startswith(f"{name}.py:")
    with pytest.raises(UserError, match="pass family="):
        metaopt.read(folder)
    found = metaopt.read(folder, family=f"{file.parent}/{manifest['family']}")
    assert found.learned.kind == KINDS[name]
    jax.tree.map(np.testing.assert_array_equal, found.theta, whole.theta)
    assert metaopt.load(folder, num_steps=10, family=f"{file}:family") is not None


def test_what_was_loaded_is_evaluated_like_what_was_trained(toy, tmp_path):
    name, file, whole, _, folder = toy
    tasks = references.resolve(f"{file}:suite")()
    found = metaopt.read(folder, family=f"{file}:family")
    num_steps = 1 if name == "forecaster" else 20
    sizes = {"num_steps": num_steps, "seeds": 2}
    rows = metaopt.evaluate({"loaded": found, "trained": whole.algorithm}, tasks, baselines=(), **sizes, out=tmp_path)
    loaded, trained = ([r for r in rows if r["method"] == method] for method in ("loaded", "trained"))
    assert len(loaded) == 2 * len(tasks)
    assert [row | {"method": ""} for row in loaded] == [row | {"method": ""} for row in trained]
    assert all(np.isfinite(row["valid"]).all() for row in loaded)
    assert (tmp_path / "report.html").exists()


def test_a_run_of_any_kind_is_read_back(toy):
    _, _, whole, _, folder = toy
    theta, step = training.read_theta(folder.parent / "half")
    assert step == 4
    jax.tree.map(np.testing.assert_array_equal, theta, whole.theta)
