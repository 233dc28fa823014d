"""Saving, loading and every way a checkpoint can be broken."""

import hashlib
import json
import struct
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from flax.training.train_state import TrainState

import metaopt
from metaopt import checkpoint, families, manifests
from metaopt.core import Learned
from metaopt.errors import UserError

SETTINGS = {"hidden": 8, "schedule": True}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A checkpoint named "mine" in a METAOPT_CHECKPOINTS of its own."""
    monkeypatch.setenv("METAOPT_CHECKPOINTS", str(tmp_path))
    theta = families.build("small_fc", **SETTINGS).init(jax.random.key(5))
    return checkpoint.save("mine", "small_fc", SETTINGS, theta, meta_trained_on=[])


def edit(folder, **changes):
    """Changes fields of a manifest, removes those that are None, and seals it without looking whether it fits."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text()) | changes
    path.write_bytes(manifests.encode({k: v for k, v in manifest.items() if v is not None}))


def test_what_is_saved_comes_back_bit_for_bit(folder):
    theta = families.build("small_fc", **SETTINGS).init(jax.random.key(5))
    jax.tree.map(np.testing.assert_array_equal, checkpoint.read("mine").theta, theta)
    jax.tree.map(np.testing.assert_array_equal, checkpoint.read(folder).theta, theta)  # by path


class Pair(NamedTuple):
    first: Any
    second: Any


def learned_of(theta, kind="optimizer"):
    """SGD with the sum of all entries of theta as its rate."""
    bind = lambda theta, num_steps=None: optax.sgd(sum(jnp.sum(x) for x in jax.tree.leaves(theta)))
    return Learned(lambda key: theta, bind, kind)


@pytest.mark.parametrize(
    "theta, names",
    [
        (np.float32([1, 2]), ["theta"]),
        ((np.float32(1), [np.float32([2, 3]), np.zeros((0, 2), np.float32)]), ["0", "1.0", "1.1"]),
        ({"a": Pair(np.float32(1), (np.float32(2),)), "b": [], "c": None}, ["a.first", "a.second.0"]),
        ([Pair({"x": np.float32([[1, 2]])}, np.float32(3))], ["0.first.x", "0.second"]),
    ],
)
def test_theta_may_be_any_tree_of_arrays(tmp_path, theta, names):
    learned = learned_of(theta)
    folder = checkpoint.save(tmp_path / "any" / "tree", learned, {}, theta)
    assert sorted(checkpoint.read_arrays(folder)) == sorted(checkpoint.read_manifest(folder)["theta"]) == names
    found = checkpoint.read(folder, family=learned).theta
    assert jax.tree.structure(found) == jax.tree.structure(theta)
    jax.tree.map(np.testing.assert_array_equal, found, theta)


def test_two_entries_of_one_name_are_refused(tmp_path):
    theta = {"a.b": np.float32(1), "a": {"b": np.float32(2)}}
    with pytest.raises(UserError, match=r"two entries that are both called 'a\.b': rename one of its keys"):
        checkpoint.save(tmp_path / "two" / "names", learned_of(theta), {}, theta)
    assert not (tmp_path / "two").exists()


def write_by_hand(folder, manifest, theta):
    """A checkpoint without our code; ``theta`` has an array for every path."""
    folder.mkdir(parents=True)
    data = safetensors.numpy.save({name: np.asarray(x, order="C") for name, x in theta.items()})
    (folder / "weights.safetensors").write_bytes(data)
    (folder / "manifest.json").write_text(json.dumps({"sha256": hashlib.sha256(data).hexdigest()} | manifest))
    return folder


def first_update(tx):
    params, grads = {"w": jnp.ones((4, 3))}, {"w": jax.random.normal(jax.random.key(1), (4, 3))}
    return jax.jit(tx.update)(grads, tx.init(params), params, value=1.0)[0]["w"]


def test_a_checkpoint_of_format_1_is_an_optimizer_with_the_names_of_today(tmp_path):
    theta = families.build("celo2").init(jax.random.key(3))
    arrays = {f"network.{name}": x for name, x in theta["network"].items()}
    config = {"orthogonalise": False, "vectors": "learned", "learning_rate": 0.01}
    old = {"format_version": 1, "name": "old", "family": "celo2", "config": config, "summary": "from before"}
    folder = write_by_hand(tmp_path / "old", old, arrays)
    found = metaopt.read(folder)
    assert found.learned.kind == found.manifest["kind"] == "optimizer"
    assert found.manifest["format_version"] == 3 and found.manifest["summary"] == "from before"
    settings = {"orthogonalize": False, "vectors": "learned", "learning_rate": 0.01}
    assert found.manifest["config"] == settings
    loaded, same, other = (
        first_update(tx)
        for tx in (
            metaopt.load(folder, num_steps=10),
            families.build("celo2", **settings).bind(theta),
            families.build("celo2", **settings | {"orthogonalize": True}).bind(theta),
        )
    )
    np.testing.assert_array_equal(loaded, same)
    assert np.abs(loaded - other).max() > 1e-4
    checkpoint.record(folder, results={"suite": {"seeds": 3}})  # written as of today, and still readable
    assert json.loads((folder / "manifest.json").read_text())["format_version"] == 3
    np.testing.assert_array_equal(first_update(metaopt.load(folder, num_steps=10)), same)


def test_the_newest_format_keeps_no_old_name(tmp_path):
    """What format 1 called orthogonalise is a setting that does not exist."""
    theta = families.build("celo2").init(jax.random.key(3))
    folder = checkpoint.save(tmp_path / "a" / "new", "celo2", {}, theta)
    edit(folder, config={"orthogonalise": False})
    with pytest.raises(UserError, match="did you mean 'orthogonalize'"):
        metaopt.read(folder)


FOREIGN = """
from pathlib import Path
import optax
from metaopt.core import Learned

Path(__file__).with_suffix(".ran").touch()

def scaled(scale: float = 2.0, kind: str = "optimizer"):
    bind = lambda theta, num_steps=None: optax.sgd(scale * theta["rate"])
    return Learned(lambda key: {"rate": 0.5}, bind, kind)
"""


def test_a_checkpoint_of_a_family_of_somebody_else_runs_no_code_unasked(tmp_path):
    path = tmp_path / "my families.py"
    path.write_text(FOREIGN)
    manifest = {"format_version": 2, "kind": "optimizer", "family": f"{path}:scaled", "config": {"scale": 3.0}}
    folder = write_by_hand(tmp_path / "foreign", manifest, {"rate": np.float32(0.25)})
    for read in (metaopt.read, metaopt.load):
        with pytest.raises(
            UserError, match="is of the family '.*:scaled', which metaopt does not have .* pass family="
        ):
            read(folder)
    assert not path.with_suffix(".ran").exists()
    expected = -0.75 * jax.random.normal(jax.random.key(1), (4, 3))
    np.testing.assert_allclose(first_update(metaopt.load(folder, family=f"{path}:scaled")), expected, rtol=1e-6)
    assert path.with_suffix(".ran").exists()
    # With the object, whatever it is called; a setting may be replaced as for our own.
    scaled = lambda scale=2.0: learned_of({"rate": np.float32(0.5)})._replace(
        bind=lambda theta, num_steps=None: optax.sgd(scale * theta["rate"])
    )
    found = metaopt.read(folder, family=scaled)
    assert found.theta == {"rate": 0.25} and found.manifest["family"] == f"{path}:scaled"
    np.testing.assert_allclose(first_update(metaopt.load(folder, family=scaled, scale=6.0)), 2 * expected, rtol=1e-6)
    with pytest.raises(UserError, match="unknown setting of hand 'scale'"):
        metaopt.read(folder, family="hand")


def test_what_is_saved_of_a_family_of_somebody_else(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FOREIGN)
    reference, theta = f"{path}:scaled", {"rate": np.float32(0.5)}
    by_name = checkpoint.save(tmp_path / "a" / "by_name", reference, {"scale": 4.0, "kind": "drift"}, theta)
    manifest = checkpoint.read_manifest(by_name)
    assert (manifest["family"], manifest["kind"], manifest["format_version"]) == (reference, "drift", 3)
    assert checkpoint.read(by_name, family=reference).learned.kind == "drift"
    by_object = checkpoint.save(tmp_path / "a" / "by_object", learned_of(theta), {}, theta)
    assert checkpoint.read_manifest(by_object)["family"] == "<Learned>"
    with pytest.raises(UserError, match="'<Learned>', which metaopt does not have"):
        checkpoint.read(by_object)
    with pytest.raises(UserError, match="'rate' should be float32.*, is float32"):
        checkpoint.save(tmp_path / "a" / "wrong", reference, {}, {"rate": np.float32([1, 2])})


def test_transposed_arrays_come_back_transposed(tmp_path):
    theta = jax.tree.map(np.asfortranarray, families.build("mlp").init(jax.random.key(0)))
    saved = checkpoint.read(checkpoint.save(tmp_path / "a" / "mlp", "mlp", {}, theta))
    jax.tree.map(np.testing.assert_array_equal, saved.theta, theta)


def test_loads_as_the_bound_optimizer(folder):
    params, grads = {"w": jnp.ones((4, 3))}, {"w": jnp.full((4, 3), 0.1)}
    found = checkpoint.read("mine")
    direct = found.learned.bind(found.theta, num_steps=20)
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
    (folder / "weights.safetensors").write_bytes(data)
    edit(folder, sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(
        UserError, match="weights.safetensors is not a file of metaopt: it is damaged, or no safetensors file"
    ):
        checkpoint.read("mine")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format_version": 99}, "format version 99, this metaopt reads 1 to 3: update metaopt"),
        ({"format_version": True}, "format version True, this metaopt reads"),
        ({"sha256": None}, "manifest.json is damaged: the field 'sha256' is missing; fetch it again"),
        ({"config": [4]}, "manifest.json is damaged: the field 'config' should be of type dict"),
        ({"family": {"small_fc": 1}}, "the field 'family' should be of type str"),
        ({"family": "small_fd"}, "is of the family 'small_fd', which metaopt does not have"),
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


@pytest.mark.parametrize("text", [b"", b"[1, 2]", b'{"format_version": 1', b"\xff\xfe", b"[" * 100_000, b"null"])
def test_a_damaged_manifest_is_found(folder, text):
    (folder / "manifest.json").write_bytes(text)
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
