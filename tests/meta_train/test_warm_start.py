"""Runs that begin from a checkpoint."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_train import recipes, settings, training, warm_start
from meta_train.recipe import Family
from meta_train.run import directory, export
from metaopt import checkpoint, families, manifests
from metaopt.errors import UserError

SETTINGS = {"hidden": 2, "schedule": True}


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A checkpoint "first" with known cost, and a short recipe that trains only its schedule."""
    monkeypatch.setenv("METAOPT_CHECKPOINTS", str(tmp_path))
    theta = families.build("small_fc", **SETTINGS).init(jax.random.key(3))
    cost = {"outer_steps": 7, "inner_steps": 70, "hours": 0.5}
    about = {"recipe": {"seed": 3}, "cost": cost, "meta_trained_on": [{"family": "mlp"}]}
    checkpoint.save("first", "small_fc", SETTINGS, theta, **about)
    changes = ["num_samples=8", "shortest=10", "longest=20", "window=10", "outer_steps=20", "warmup=0", "save_every=10"]
    return theta, settings.override(recipes.find("quadratics"), [*changes, "start=first", "only=schedule"])


def test_only_the_chosen_entry_moves_and_the_export_is_whole(begun, tmp_path):
    theta, second = begun
    training.train(second, folder := tmp_path / "run")
    export.export(folder, "second")
    new = checkpoint.read("second")
    jax.tree.map(np.testing.assert_array_equal, new.theta["network"], theta["network"])
    assert np.abs(new.theta["schedule"]).max() > 1e-4
    assert new.manifest["cost"]["outer_steps"] == 27
    assert new.manifest["cost"]["inner_steps"] == 70 + 20 * 2 * 8 * 10
    assert new.manifest["started_from"]["recipe"] == {"seed": 3}
    assert [traits["family"] for traits in new.manifest["meta_trained_on"]] == ["mlp", "quadratic"]
    path = folder / directory.START / checkpoint.MANIFEST
    first = json.loads(path.read_text())
    del first["meta_trained_on"]  # as in imported weights
    path.write_bytes(manifests.encode(first))
    assert "meta_trained_on" not in checkpoint.read(export.export(folder, "third")).manifest


def test_a_run_keeps_what_it_began_from(begun, tmp_path):
    theta, second = begun
    training.train(second, folder := tmp_path / "run")
    before, _ = training.read_theta(folder)
    other = jax.tree.map(lambda t: t + 1.0, theta)
    checkpoint.save("other", "small_fc", SETTINGS, other)
    shutil.rmtree(tmp_path / "first")
    (tmp_path / "other").rename(tmp_path / "first")
    jax.tree.map(np.testing.assert_array_equal, training.read_theta(folder)[0], before)


def test_binding_a_part_is_binding_the_whole():
    optimizer = families.build("small_fc", **SETTINGS)
    theta = optimizer.init(jax.random.key(0))
    part = warm_start.begin_from(optimizer, theta, ["schedule"])
    assert set(part.init(jax.random.key(1))) == {"schedule"}
    params = {"w": jnp.ones((3, 2))}
    changed = {"schedule": jnp.full_like(theta["schedule"], 0.1)}
    steps = []
    for tx in (part.bind(changed, num_steps=10), optimizer.bind({**theta, **changed}, num_steps=10)):
        steps.append(tx.update(params, tx.init(params), params, value=jnp.float32(1.0))[0])
    np.testing.assert_array_equal(steps[0]["w"], steps[1]["w"])


def test_an_unknown_entry_is_named():
    theta = {"schedule": jnp.zeros(2)}
    with pytest.raises(UserError, match="did you mean 'schedule'"):
        warm_start.begin_from(families.build("small_fc"), theta, ["shedule"])


def test_a_checkpoint_that_cannot_be_copied_is_named_and_the_run_goes_on_later(begun, tmp_path, monkeypatch):
    _, second = begun

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copytree", full)
        with pytest.raises(UserError, match="cannot copy checkpoint first to .*No space left .* --resume"):
            training.train(second, tmp_path / "run")
    assert training.resume(tmp_path / "run").finished


def test_a_checkpoint_of_another_optimizer_is_refused_before_anything_is_written(begun, tmp_path):
    _, second = begun
    other = dataclasses.replace(second, family=Family("small_fc", {"hidden": 3}, start="first"))
    with pytest.raises(UserError, match="checkpoint first has hidden=2, the recipe asks for 3"):
        training.train(other, tmp_path / "run")
    assert not (tmp_path / "run").exists()
