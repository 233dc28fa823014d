"""Data sets: where they come from, how they are split, what is said when one is missing."""

import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.errors import UserError
from tasks import data, image_table


@pytest.fixture(autouse=True)
def _nothing_remembered():
    data.load.cache_clear()
    yield
    data.load.cache_clear()


def test_digits_are_always_there():
    digits = data.load("digits")
    assert digits.source == "scikit-learn" and digits.images.shape == (1797, 8, 8)
    assert digits.images.dtype == np.uint8 and digits.images.max() == 255


@pytest.mark.parametrize("name", ["digits", "mnist5k"])
def test_splits_are_disjoint_and_balanced(name):
    found = data.load(name)
    assert found.bounds[-1] == len(found.images)
    for first, last in zip(found.bounds[:-1], found.bounds[1:], strict=True):
        share = np.bincount(found.labels[first:last], minlength=10) / (last - first)
        assert 0.05 < share.min() and share.max() < 0.16  # a tenth each, sorted or cyclic as the labels are
    rows = found.images.reshape(len(found.images), -1)
    train, test = rows[: found.bounds[1]], rows[found.bounds[2] :]
    assert len({r.tobytes() for r in train} & {r.tobytes() for r in test}) <= 2  # no example twice but for twins


def test_own_files_come_first(tmp_path, monkeypatch):
    images = np.arange(20 * 4, dtype=np.uint8).reshape(20, 2, 2)
    np.savez(tmp_path / "digits.npz", images=images, labels=np.arange(20) % 10, num_test=5)
    monkeypatch.setenv("METAOPT_DATA_DIR", str(tmp_path))
    found = data.load("digits")
    assert found.source == "METAOPT_DATA_DIR" and found.bounds[2:] == (15, 20)
    np.testing.assert_array_equal(found.images[15:], images[15:])


GOOD = {"images": np.zeros((20, 2, 2), np.uint8), "labels": np.arange(20) % 10, "num_test": 5}


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "it is no .npz file"),
        (b"garbage", "it is no .npz file"),
        (b"PK\x03\x04half of an archive", "it is no .npz file"),
        (None, "Is a directory"),
        ({"images": GOOD["images"]}, "num_test is not a file in the archive"),
        (GOOD | {"images": np.zeros((20, 4))}, r"images should be \(num, side, side\) uint8, are \(20, 4\) float64"),
        (GOOD | {"images": np.zeros((0, 2, 2), np.uint8)}, r"are \(0, 2, 2\) uint8"),
        (GOOD | {"images": np.array(["a"], object)}, "Object arrays cannot be loaded"),
        (GOOD | {"labels": np.arange(19)}, r"labels should be \(20,\) integers, are \(19,\) int64"),
        (GOOD | {"labels": np.arange(20)}, "labels should be from 0 to 9, are from 0 to 19"),
        (GOOD | {"labels": np.full(20, 0.5)}, r"are \(20,\) float64"),
        (GOOD | {"num_test": 11}, "num_test should be from 0 to 10 less than the 20 images, is 11"),
        (GOOD | {"num_test": -1}, "is -1"),
        (GOOD | {"num_test": [1, 2]}, r"num_test should be an integer, is \(2,\) int64"),
    ],
)
def test_a_damaged_file_is_named_and_not_replaced_by_another_source(tmp_path, monkeypatch, content, message):
    path = tmp_path / "digits.npz"
    if content is None:
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)
    monkeypatch.setenv("METAOPT_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=rf"'digits' cannot be read from .*digits.npz \(.*{message}.*\): replace that"):
        data.load("digits")


def test_other_damaged_sources_are_named_too(tmp_path, monkeypatch):
    monkeypatch.setenv("METAOPT_DATA_DIR", str(tmp_path / "none"))
    with pytest.raises(UserError, match="METAOPT_DATA_DIR=.*none is no folder"):
        data.load("digits")
    monkeypatch.delenv("METAOPT_DATA_DIR")
    (tmp_path / "half.gz").write_bytes(gzip.compress(b"\0\0\x08\x03")[:-3])
    damaged = data.Entry("Debian package", lambda: (data._idx(tmp_path / "half.gz"), np.zeros(0), 0), "")
    monkeypatch.setitem(data.DATASETS, "fashion", damaged)
    with pytest.raises(UserError, match="cannot be read from Debian package .*end-of-stream"):
        data.load("fashion")


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "metaopt").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    answer = np.zeros((20, 2, 2), np.uint8), np.arange(20) % 10, 5
    monkeypatch.setitem(data.DATASETS, "fashion", data.Entry("nowhere", lambda: None, "", lambda: answer))
    assert data.load("fashion").source == "Hugging Face hub"


def test_a_missing_set_says_what_to_install(monkeypatch):
    missing = data.Entry("nowhere", lambda: None, "apt-get install dataset-fashion-mnist")
    monkeypatch.setitem(data.DATASETS, "fashion", missing)
    with pytest.raises(UserError, match="not on this machine: apt-get install dataset-fashion-mnist"):
        data.load("fashion")


def test_what_the_hub_gave_is_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    answer = np.zeros((20, 2, 2), np.uint8), np.arange(20) % 10, 5
    monkeypatch.setitem(data.DATASETS, "fashion", data.Entry("nowhere", lambda: None, "", lambda: answer))
    assert data.load("fashion").source == "Hugging Face hub"
    data.load.cache_clear()
    assert data.load("fashion").source == "cache"


def test_an_unknown_set_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'digits'"):
        data.load("digit")


def test_resizing_averages_areas():
    images = np.arange(16, dtype=np.uint8).reshape(1, 4, 4) * 10
    np.testing.assert_array_equal(data.resize(images, 2)[0], [[25, 45], [105, 125]])
    third = data.resize(np.full((1, 7, 7), 90, np.uint8), 3)  # windows of 7/3 pixels
    np.testing.assert_array_equal(third, np.full((1, 3, 3), 90))


def test_a_batch_comes_from_its_split_and_set():
    table = image_table.build(("digits", "mnist5k"), 8)
    digits, mnist = data.load("digits"), data.load("mnist5k")
    for index, found in enumerate((digits, mnist)):
        inputs, labels = table.batch(index, "valid", jax.random.key(0), 256)
        first, last = found.bounds[1:3]
        allowed = (data.resize(found.images[first:last], 8).reshape(last - first, -1) - table.mean[index]) / table.std[
            index
        ]
        pairs = {
            (row.tobytes(), label)
            for row, label in zip(np.asarray(allowed, np.float32).round(3), found.labels[first:last], strict=True)
        }
        drawn = np.asarray(inputs, np.float32).round(3)
        assert sum((row.tobytes(), label) in pairs for row, label in zip(drawn, np.asarray(labels), strict=True)) >= 250
        np.testing.assert_allclose(np.asarray(inputs).std(), 1.0, rtol=0.1)


def test_a_subset_wraps_around_the_end_of_its_split():
    table = image_table.build(("digits",), 8)
    size = int(table.sizes[0, 0])
    subset = image_table.Subset(jnp.int32(size - 2), jnp.int32(5))
    _, whole = table.evenly_spaced(0, "train", size)
    _, labels = table.evenly_spaced(0, "train", 5, subset)
    np.testing.assert_array_equal(labels, whole[jnp.array([size - 2, size - 1, 0, 1, 2])])
    drawn, _ = table.batch(0, "train", jax.random.key(0), 200, subset)
    assert len(np.unique(drawn, axis=0)) == 5


def test_the_size_of_a_subset_is_log_uniform():
    table = image_table.build(("digits",), 8)
    size, smallest = int(table.sizes[0, 0]), 100
    draw = jax.vmap(lambda key: table.draw_subset(0, "train", key, smallest).count)
    counts = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    assert counts.min() >= smallest and counts.max() <= size
    # The logarithm is uniform: its mean within four standard errors (range / sqrt(12 n)).
    span = np.log((size + 1) / smallest)
    np.testing.assert_allclose(np.log(counts).mean(), np.log(smallest) + span / 2, atol=4 * span / (12 * 4000) ** 0.5)
    assert table.draw_subset(0, "train", jax.random.key(0), 2 * size).count == size
