"""The seal of a manifest, and writes of a checkpoint that are cut short."""

import hashlib
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import checkpoint, families, manifests, replacing, tensors
from metaopt.errors import UserError

SETTINGS = {"hidden": 8, "schedule": True}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A checkpoint named "mine" in a METAOPT_CHECKPOINTS of its own."""
    monkeypatch.setenv("METAOPT_CHECKPOINTS", str(tmp_path))
    results = {"suite": {"median": 0.28, "interval": [0.16, 0.44], "failed": "0/60", "reached": None}}
    return save(5, summary="tested on käse", licence="MIT", meta_trained_on=[], results=results)


def theta_of(seed: int):
    return families.build("small_fc", **SETTINGS).init(jax.random.key(seed))


def save(seed: int, **options):
    return checkpoint.save("mine", "small_fc", SETTINGS, theta_of(seed), **options)


def holds(seed: int) -> bool:
    """Whether the checkpoint "mine" is whole, with the theta of a seed."""
    equal = jax.tree.map(np.array_equal, checkpoint.read("mine").theta, theta_of(seed))
    return all(jax.tree.leaves(equal))


# The seal.


def test_every_changed_byte_that_changes_the_meaning_is_refused(folder):
    path = folder / "manifest.json"
    data, rng = path.read_bytes(), np.random.default_rng(0)
    whole = manifests.read(folder)
    same = 0
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] = rng.integers(32, 127) if position % 2 else broken[position] ^ 1 << rng.integers(8)
        path.write_bytes(broken)
        try:
            assert manifests.read(folder) == whole
            same += 1
        except UserError as error:
            message = str(error)
            assert message.startswith(str(path)) and "\n" not in message and len(message) < 600
            assert "fetch it again" in message or "update metaopt" in message
    assert 0 < same < len(data) / 2  # spaces, most of them


@pytest.mark.parametrize("end", [0, 1, 100, -2])
def test_a_truncated_manifest_is_refused(folder, end):
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(UserError, match="manifest.json is damaged: .*; fetch it again, or mend it"):
        checkpoint.load("mine", num_steps=10)


@pytest.mark.parametrize(
    "old, new",
    [
        ('"hidden": 8', '"hidden": 9'),
        ('"schedule": true', '"schedule": false'),
        ("0.28", "0.27"),
        ('"MIT"', '"GPL"'),
        ('"format_version": 3', '"format_version": 2'),  # no way around it
        ('"format_version": 3', '"format_version": 1'),
        ('"seal"', '"sea"'),
    ],
)
def test_an_edited_manifest_says_how_to_seal_it(folder, old, new):
    path = folder / "manifest.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError) as error:
        checkpoint.read("mine")
    assert str(error.value) == (
        f"{path} is damaged or was edited: it does not say what was sealed; fetch it again or, if you edited it, run: "
        f"metaopt seal {folder}"
    )
    with pytest.raises(UserError, match="does not say what was sealed"):
        checkpoint.record("mine", results={})


def test_order_and_spaces_may_change(folder):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(manifest.items())), ensure_ascii=False), encoding="utf-8")
    assert holds(5)


def test_an_edited_manifest_is_sealed_again(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"MIT"', '"Apache-2.0"'))
    assert checkpoint.seal("mine") == path
    assert holds(5) and checkpoint.read_manifest("mine")["licence"] == "Apache-2.0"


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('"hidden": 8', '"hidden": 9', r"'network.b0' should be float32\[9\], is float32\[8\]"),
        ('"hidden": 8', '"hiden": 8', "did you mean 'hidden'"),
        ('"sha256": "', '"sha256": "0', "weights.safetensors is damaged: its sha256"),
        ('"MIT",', '"MIT"', "manifest.json is damaged: Expecting"),
    ],
)
def test_a_manifest_that_does_not_fit_its_weights_is_not_sealed(folder, old, new, message):
    path = folder / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace(old, new))
    edited = path.read_bytes()
    with pytest.raises(UserError, match=message):
        checkpoint.seal("mine")
    assert path.read_bytes() == edited


@pytest.mark.parametrize("version", [1, 2])
def test_older_formats_have_no_seal_and_get_one(folder, version):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text()) | {"format_version": version}
    old = {name: value for name, value in manifest.items() if name != "seal" and (name != "kind" or version > 1)}
    path.write_text(json.dumps(old))
    assert holds(5)
    checkpoint.seal("mine")
    sealed = json.loads(path.read_text())
    assert sealed == manifest | {"format_version": 3}  # the seal that it had
    assert holds(5)


def test_what_is_recorded_is_sealed(folder):
    checkpoint.record("mine", results={"other": {"seeds": 3}}, summary="new")
    assert holds(5)
    manifest = checkpoint.read_manifest("mine")
    assert set(manifest["results"]) == {"suite", "other"} and manifest["summary"] == "new"


def test_every_shipped_manifest_is_sealed():
    shipped = list((Path(checkpoint.__file__).parents[1] / "checkpoints").glob("*/manifest.json"))
    assert shipped
    for path in shipped:
        assert path.read_bytes() == manifests.encode(manifests.read(path.parent))


@pytest.mark.parametrize(
    "about, message",
    [
        ({"cost": np.float32(1)}, "the field 'cost' of the manifest is no JSON: .*float32.*; nothing was written"),
        ({"source": Path("x")}, "the field 'source' of the manifest is no JSON"),
        ({"sha256": "0"}, "the field 'sha256' of a manifest is written by metaopt itself: choose another name for it"),
        ({"kind": "drift"}, "the field 'kind' of a manifest is written by metaopt itself"),
    ],
)
def test_what_cannot_be_in_a_manifest_is_named(tmp_path, about, message):
    with pytest.raises(UserError, match=message):
        checkpoint.save(tmp_path / "new" / "one", "small_fc", SETTINGS, theta_of(5), **about)
    assert not (tmp_path / "new").exists()


# Overwriting.


def test_another_checkpoint_is_overwritten_only_when_asked(folder):
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(UserError) as error:
        save(6)
    assert str(error.value) == (
        f"there is a checkpoint {folder} already: choose another name or, to replace it, pass overwrite=True "
        "(--overwrite on the command line)"
    )
    assert (folder / "manifest.json").read_bytes() == before and holds(5)
    save(6, overwrite=True)
    assert holds(6) and "licence" not in checkpoint.read_manifest("mine")
    assert sorted(os.listdir(folder)) == ["manifest.json", "weights.safetensors"]


def test_overwriting_leaves_files_of_the_user_and_mends_a_damaged_checkpoint(folder):
    (folder / "notes.txt").write_text("mine")
    (folder / "manifest.json").write_text("{")
    save(6, overwrite=True)
    assert holds(6) and (folder / "notes.txt").read_text() == "mine"


class Killed(BaseException):
    """What no handler of errors sees, as a kill."""


def steps_of_a_write(monkeypatch, stop_at: int, error: BaseException):
    """Lets a write come to its ``stop_at``-th change on disk, and raises there."""
    count = iter(range(stop_at))

    def counted(function):
        def call(*arguments, **keywords):
            if next(count, None) is None:
                raise error
            return function(*arguments, **keywords)

        return call

    monkeypatch.setattr(replacing, "_write", counted(replacing._write))
    monkeypatch.setattr(Path, "replace", counted(Path.replace))
    monkeypatch.setattr(Path, "mkdir", counted(Path.mkdir))


@pytest.mark.parametrize("stop_at", range(6))
def test_a_crash_leaves_the_old_checkpoint_or_the_new_one(folder, stop_at):
    """mkdir, two files beside their places, the manifest in its place, the weights in theirs."""
    with pytest.MonkeyPatch.context() as patch:
        steps_of_a_write(patch, stop_at, Killed())
        if stop_at == 5:  # there is no sixth step
            save(6, overwrite=True)
        else:
            with pytest.raises(Killed):
                save(6, overwrite=True)
    assert holds(6 if stop_at > 3 else 5)
    # And so does a crash after that one.
    for again in range(6):
        with pytest.MonkeyPatch.context() as patch:
            steps_of_a_write(patch, again, Killed())
            try:
                save(7, overwrite=True)
            except Killed:
                pass
        assert holds(7) or holds(6 if stop_at > 3 else 5)
    save(8, overwrite=True)
    assert holds(8) and sorted(os.listdir(folder)) == ["manifest.json", "weights.safetensors"]


@pytest.mark.parametrize("stop_at", range(4))
def test_a_crash_of_a_first_write_leaves_none_and_the_name_free(tmp_path, monkeypatch, stop_at):
    monkeypatch.setenv("METAOPT_CHECKPOINTS", str(tmp_path / "own"))
    with pytest.MonkeyPatch.context() as patch:
        steps_of_a_write(patch, stop_at, Killed())
        with pytest.raises(Killed):
            save(6)
    with pytest.raises(UserError, match="unknown checkpoint 'mine'"):
        checkpoint.read("mine")
    save(7)
    assert holds(7)


@pytest.mark.parametrize("stop_at", range(4))
def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_else(folder, stop_at):
    with pytest.MonkeyPatch.context() as patch:
        steps_of_a_write(patch, stop_at, OSError(28, "No space left on device"))
        with pytest.raises(UserError, match=f"cannot write checkpoint {folder}: No space left on device"):
            save(6, overwrite=True)
    assert holds(5) and sorted(os.listdir(folder)) == ["manifest.json", "weights.safetensors"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_our_own_format_converts_nothing(folder, dtype):
    """What is right for a file of another project is damage in ours: theta is float32."""
    half = {path: array.astype(jnp.dtype(dtype)) for path, array in checkpoint.read_arrays("mine").items()}
    data = tensors.dump(half)
    (folder / "weights.safetensors").write_bytes(data)
    manifest = checkpoint.read_manifest("mine") | {"sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_bytes(manifests.encode(manifest))
    with pytest.raises(UserError, match=rf"'factored_decays' should be float32\[3\], is {dtype}\[3\]"):
        checkpoint.read("mine")
