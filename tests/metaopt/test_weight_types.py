"""The types of numbers in files of other projects: half precision is read as float32, all others are called by name."""

import io
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import serialization

from metaopt import importers, tensors
from metaopt.errors import UserError
from metaopt.importers import files
from tests.metaopt.foreign_files import sample, torch_zip

WRONG = ["float64", "int8", "int32", "int64", "uint16", "bool", "float8_e4m3fn", "float8_e5m2"]
OPTIONS = {"step_multiplier": 0.01}
OPEN_OPTIONS = {"num_minibatches": 8, "num_epochs": 4}


def numpy_bytes(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def mulo(dtype):
    """The tree of muLO's sample, its entries of another type."""
    raw = pickle.loads(sample("mulo_theta_seeded.pickle").read_bytes())  # our own file
    return jax.tree.map(lambda x: np.asarray(x).astype(dtype), raw)


WRITERS = {
    "pickle": pickle.dumps,
    "pickle of JAX": lambda tree: pickle.dumps(jax.tree.map(jnp.asarray, tree)),
    "msgpack": serialization.msgpack_serialize,
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("writer", WRITERS)
def test_half_precision_is_read_as_float32(tmp_path, writer, dtype):
    tree = mulo(jnp.dtype(dtype))
    (tmp_path / "x").write_bytes(WRITERS[writer](tree))
    found = importers.read(tmp_path / "x", **OPTIONS).theta["network"]
    for name, entry in tree["nn"]["~"].items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], entry.astype(np.float32))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("container", ["safetensors", "torch", "torch, big endian"])
@pytest.mark.parametrize("name, options", [("metamlp", {"decays": "mulo"}), ("celo2mlp", {"variant": "base"})])
def test_half_precision_of_pylo(tmp_path, monkeypatch, name, options, container, dtype):
    options = options | ({"learning_rate": 0.01} if "variant" in options else {})
    whole = files.read(sample(f"{name}_seeded.safetensors")).arrays
    half = {path: array.astype(jnp.dtype(dtype)) for path, array in whole.items()}
    is_torch = container != "safetensors"
    data = torch_zip(half, monkeypatch, "big" in container) if is_torch else safetensors.numpy.save(half)
    (tmp_path / "half").write_bytes(data)
    rounded = {path: array.astype(np.float32) for path, array in half.items()}
    (tmp_path / "rounded").write_bytes(safetensors.numpy.save(rounded))
    ours, expected = (importers.read(tmp_path / file, **options).theta for file in ("half", "rounded"))
    jax.tree.map(np.testing.assert_array_equal, ours, expected)
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(ours))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", ">f4", ">f2"])
def test_half_precision_and_byte_orders_of_numpy(tmp_path, dtype):
    vector = np.linspace(-1, 1, 1211, dtype=np.float32).astype(jnp.dtype(dtype))
    (tmp_path / "x").write_bytes(numpy_bytes(vector))
    found = files.read(tmp_path / "x").arrays["array"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, vector.astype(np.float32))
    assert importers.read(tmp_path / "x", **OPEN_OPTIONS).config["hidden"] == 8


@pytest.mark.parametrize("dtype", WRONG)
@pytest.mark.parametrize("writer", ["pickle", "msgpack", "safetensors"])
def test_any_other_type_is_called_by_its_name(tmp_path, writer, dtype):
    if writer == "safetensors":
        whole = files.read(sample("metamlp_seeded.safetensors")).arrays
        data = safetensors.numpy.save({path: array.astype(jnp.dtype(dtype)) for path, array in whole.items()})
    else:
        data = WRITERS[writer](mulo(jnp.dtype(dtype)))
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(UserError, match=rf"x .small_fc weights.: '.*' should be float32.*, is {dtype}\[") as error:
        importers.read(tmp_path / "x")
    assert str(error.value).endswith("; weights are read from float32, float16, bfloat16: convert it first")


@pytest.mark.parametrize("dtype", ["float64", "int16", "bool", "uint8"])
def test_other_types_of_torch(tmp_path, monkeypatch, dtype):
    whole = files.read(sample("metamlp_seeded.safetensors")).arrays
    (tmp_path / "x").write_bytes(torch_zip({p: a.astype(dtype) for p, a in whole.items()}, monkeypatch))
    with pytest.raises(UserError, match=rf"should be float32.*, is {dtype}\[32, 39\]; weights are read from"):
        importers.read(tmp_path / "x")


@pytest.mark.parametrize(
    "data, message",
    [
        (numpy_bytes(np.zeros(1211, jnp.float8_e4m3fn)), "an array of type void8 .numpy.save writes float8 and int4"),
        (
            numpy_bytes(np.zeros(1211, jnp.float8_e5m2)),
            "a type that NumPy cannot read, as for float8: save it as float32",
        ),
        (numpy_bytes(np.zeros(1211, "U5")), "an array of type str160, which is no type of numbers: save it as float32"),
        (numpy_bytes(np.zeros(0, np.float32)), r"'array' is empty, its shape is \[0\]"),
        (
            numpy_bytes(np.zeros((1211, 1), np.float32)),
            r"an array of shape \[1211, 1\]; OPEN is a vector of 1211 or 3571",
        ),
        (numpy_bytes(np.full(1211, np.inf, np.float32)), "'array' holds values that are not finite, NaN or infinity"),
    ],
)
def test_arrays_of_numpy_that_are_no_weights(tmp_path, data, message):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(UserError, match=message):
        importers.read(tmp_path / "x", **OPEN_OPTIONS)


@pytest.mark.parametrize("shape", [(0, 32), (32, 31)])
@pytest.mark.parametrize("container", ["safetensors", "torch"])
def test_an_entry_that_is_empty_or_of_another_shape_is_named(tmp_path, monkeypatch, container, shape):
    arrays = dict(files.read(sample("metamlp_seeded.safetensors")).arrays)
    arrays["network.linear_0.weight"] = np.zeros(shape, np.float32)
    data = torch_zip(arrays, monkeypatch) if container == "torch" else safetensors.numpy.save(arrays)
    (tmp_path / "x").write_bytes(data)
    message = rf"'network.linear_0.weight' should be float32\[32, 32\], is float32\[{shape[0]}, {shape[1]}\]$"
    with pytest.raises(UserError, match=message):
        importers.read(tmp_path / "x", decays="mulo")


def test_a_file_whose_entries_are_all_empty(tmp_path):
    (tmp_path / "x").write_bytes(pickle.dumps(jax.tree.map(lambda x: x[:0], mulo(np.float32))))
    with pytest.raises(UserError, match=r"'nn/~/b0' is empty, its shape is \[0\]"):
        importers.read(tmp_path / "x", **OPTIONS)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_archives_of_numpy_hold_arrays_by_name(tmp_path, save):
    arrays = {"b/w": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.float32(2.0)}
    save(tmp_path / "x.npz", **arrays)
    found = importers.files.read(tmp_path / "x.npz")
    assert found.container == "numpy archive" and list(found.arrays) == ["a", "b/w"]
    jax.tree.map(np.testing.assert_array_equal, found.arrays, arrays)


@pytest.mark.parametrize("dtype", ["float32", *WRONG, "bfloat16", "float16"])
def test_tensors_of_every_type_come_back_bit_for_bit(dtype):
    arrays = {"b": np.arange(6).reshape(2, 3).astype(jnp.dtype(dtype)), "a": np.ones((0, 4), jnp.dtype(dtype))}
    arrays["c"] = np.asfortranarray(arrays["b"])
    found = tensors.load(tensors.dump(arrays))
    assert list(found) == ["a", "b", "c"]
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


def test_a_type_that_safetensors_does_not_have_is_named():
    with pytest.raises(UserError, match="'a' is of type int4, which safetensors cannot hold: use float32"):
        tensors.dump({"a": np.zeros(2, jnp.int4)})
