"""Saving, loading and every way a checkpoint can be broken."""

import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import metaopt
from metaopt import checkpoint, families
from metaopt.errors import UserError

SETTINGS = {"hidden": 8, "schedule": True}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A checkpoint named "mine" in a METAOPT_CHECKPOINTS of its own."""
    monkeypatch.setenv("METAOPT_CHECKPOINTS", str(tmp_path))
    theta = families.build("small_fc", **SETTINGS).init(jax.random.key(5))
    return checkpoint.save("mine", "small_fc", SETTINGS, theta, meta_trained_on=[])


def edit(folder, **changes):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in manifest.items() if v is not None}))


def test_what_is_saved_comes_back_bit_for_bit(folder):
    theta = families.build("small_fc", **SETTINGS).init(jax.random.key(5))
    jax.tree.map(np.testing.assert_array_equal, checkpoint.read("mine").theta, theta)
    jax.tree.map(np.testing.assert_array_equal, checkpoint.read(folder).theta, theta)  # by path


def test_transposed_arrays_come_back_transposed(tmp_path):
    theta = jax.tree.map(np.asfortranarray, families.build("mlp").init(jax.random.key(0)))
    saved = checkpoint.read(checkpoint.save(tmp_path / "a" / "mlp", "mlp", {}, theta))
    jax.tree.map(np.testing.assert_array_equal, saved.theta, theta)


def test_loads_as_the_bound_optimizer(folder):
    params, grads = {"w": jnp.ones((4, 3))}, {"w": jnp.full((4, 3), 0.1)}
    found = checkpoint.read("mine")
    direct = found.optimizer.bind(found.theta, num_steps=20)
    tx = metaopt.load("mine", num_steps=20)
    ours, theirs = [jax.jit(t.update)(grads, t.init(params), params, value=1.0)[0] for t in (tx, direct)]
    np.testing.assert_array_equal(ours["w"], theirs["w"])


def test_settings_may_be_replaced_but_not_the_shape_of_theta(folder):
    params, grads = {"w": jnp.ones((4, 3))}, {"w": jnp.full((4, 3), 0.1)}
    first = lambda tx: jax.jit(tx.update)(grads, tx.init(params), params)[0]["w"]
    larger = metaopt.load("mine", num_steps=20, step_multiplier=2e-3)
    np.testing.assert_allclose(first(larger), 2 * first(metaopt.load("mine", num_steps=20)), rtol=1e-6)
    with pytest.raises(UserError, match=r"'network.b0' should be float32\[4\], is float32\[8\]"):
        metaopt.load("mine", num_steps=20, hidden=4)
    with pytest.raises(UserError, match="did you mean 'step_multiplier'"):
        metaopt.load("mine", num_steps=20, step_multiplyer=1.0)


def test_can_be_loaded_inside_inject_hyperparams_and_a_train_state(folder):
    make = lambda num_steps, scale: optax.chain(metaopt.load("mine", num_steps=num_steps), optax.scale(scale))
    tx = optax.inject_hyperparams(make)(num_steps=20, scale=2.0)  # num_steps becomes an array
    params, grads = {"w": jnp.ones((4, 3))}, {"w": jnp.full((4, 3), 0.1)}
    state = TrainState.create(apply_fn=None, params=params, tx=tx).apply_gradients(grads=grads)
    plain = metaopt.load("mine", num_steps=20)
    updates, _ = plain.update(grads, plain.init(params), params)
    np.testing.assert_allclose(state.params["w"], params["w"] + 2 * updates["w"], rtol=1e-5)


def test_a_missing_num_steps_is_named(folder):
    with pytest.raises(ValueError, match="pass num_steps="):
        metaopt.load("mine")


def test_names_are_listed_and_own_ones_come_first(folder):
    assert "mine" in metaopt.list_pretrained()
    with pytest.raises(UserError, match=r"unknown checkpoint 'mime'; did you mean 'mine'\? \(known: .*mine"):
        metaopt.load("mime")


def test_every_flipped_bit_is_found(folder):
    path = folder / "weights.safetensors"
    data = path.read_bytes()
    for position in np.random.default_rng(0).integers(0, len(data), 20):
        broken = bytearray(data)
        broken[position] ^= 1 << int(position % 8)
        path.write_bytes(broken)
        with pytest.raises(UserError, match="damaged: its sha256"):
            checkpoint.read("mine")


def test_a_truncated_file_is_found(folder):
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged: its sha256"):
        checkpoint.read("mine")


@pytest.mark.parametrize("data", [b"", b"not safetensors", struct.pack("<Q", 2**60) + b"{}"])
def test_a_hostile_file_with_the_right_hash_is_one_error(folder, data):
    import hashlib

    (folder / "weights.safetensors").write_bytes(data)
    edit(folder, sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(UserError, match="not a safetensors file"):
        checkpoint.read("mine")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format_version": 99}, "format version 99, this metaopt reads 1"),
        ({"sha256": None}, "field 'sha256' is missing"),
        ({"family": "small_fd"}, "did you mean 'small_fc'"),
        ({"config": {"hiden": 4}}, "did you mean 'hidden'"),
        ({"config": {"hidden": "4"}}, "hidden takes int, got '4'"),
        ({"config": {"hidden": 4, "schedule": True}}, r"'network.b0' should be float32\[4\], is float32\[8\]"),
        ({"config": {"hidden": 8}}, "hold 'schedule', which the family does not have"),
        ({"config": {"hidden": 8}, "family": "mlp"}, "the weights lack|does not have|should be"),
    ],
)
def test_a_manifest_that_lies_is_found(folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(UserError, match=message):
        checkpoint.read("mine")


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"format_version": 1'])
def test_a_damaged_manifest_is_found(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(UserError, match="manifest.json is damaged"):
        checkpoint.read("mine")


def test_missing_weights_are_found(folder):
    (folder / "weights.safetensors").unlink()
    with pytest.raises(UserError, match="weights.safetensors is missing"):
        checkpoint.read("mine")


def test_theta_that_is_not_finite_is_not_written(tmp_path):
    theta = families.build("mlp").init(jax.random.key(0))
    theta["network"]["b1"] = theta["network"]["b1"].at[3].set(jnp.nan)
    with pytest.raises(UserError, match="not finite at 'network.b1'"):
        checkpoint.save(tmp_path / "bad" / "one", "mlp", {}, theta)
    assert not (tmp_path / "bad").exists()


def test_a_folder_of_something_else_is_not_overwritten(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("years of work")
    theta = families.build("hand").init(jax.random.key(0))
    with pytest.raises(UserError, match="exists and is not a checkpoint"):
        checkpoint.save(tmp_path / "taken", "hand", {}, theta)


@pytest.mark.parametrize("name", checkpoint.list_pretrained())
def test_every_shipped_checkpoint_loads_and_steps(name):
    tx = metaopt.load(name, num_steps=100)
    params, grads = {"w": jnp.ones((8, 4)), "b": jnp.zeros(4)}, {"w": jnp.full((8, 4), 0.1), "b": jnp.ones(4)}
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params, value=1.0)
    assert all(np.isfinite(u).all() and np.abs(u).max() > 0 for u in jax.tree.leaves(updates))
