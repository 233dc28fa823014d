"""Truncated, bit-flipped and hostile files: right weights or one clear error, and nothing is executed."""

import collections
import io
import os
import pickle
import struct
import tracemalloc
import zipfile

import jax
import msgpack
import numpy as np
import pytest

from metaopt import importers
from metaopt.errors import UserError
from metaopt.importers import disco
from tests.metaopt.foreign_files import SAMPLES, sample, torch_zip


@pytest.fixture
def refused(tmp_path):
    """Imports bytes, which must fail with one line that names the file; returns the rest of it."""

    def refused(data: bytes) -> str:
        path = tmp_path / "hostile"
        path.write_bytes(data)
        with pytest.raises(UserError) as error:
            importers.read(path)
        message = str(error.value)
        assert message.startswith(str(path)) and "\n" not in message and len(message) < 1000
        return message.removeprefix(str(path))

    return refused


def contents(name: str, monkeypatch) -> bytes:
    if name == "torch":
        arrays = importers.files.read(sample("metamlp_seeded.safetensors")).arrays
        return torch_zip(arrays, monkeypatch)
    if name == "open":
        file = io.BytesIO()
        np.save(file, np.linspace(-1, 1, 1211, dtype=np.float32))
        return file.getvalue()
    if name == "disco":
        file = io.BytesIO()
        np.savez_compressed(file, **{path: np.zeros(shape, np.float32) for path, shape in disco.SHAPES.items()})
        return file.getvalue()
    return sample(name).read_bytes()


FUZZED = SAMPLES | {"torch": {"decays": "mulo"}, "open": {"num_minibatches": 8, "num_epochs": 4}, "disco": {}}


@pytest.mark.parametrize("name", FUZZED)
def test_damaged_files_are_right_or_refused(tmp_path, monkeypatch, name):
    data, options, rng = contents(name, monkeypatch), FUZZED[name], np.random.default_rng(0)
    path = tmp_path / "damaged"
    path.write_bytes(data)
    whole = importers.read(path, **options)
    shapes = jax.tree.map(np.shape, whole.theta)
    # Half of the flips in the first 2 KB, where most containers have their headers.
    flips = [int(p) for end in (len(data), min(len(data), 2048)) for p in rng.integers(0, end, 150)]
    damaged = [
        data[:position] + bytes([data[position] ^ 1 << rng.integers(8)]) + data[position + 1 :] for position in flips
    ]
    truncated = [data[: int(end)] for end in rng.integers(0, len(data), 100)]
    outcomes = []
    for broken in damaged + truncated:
        path.write_bytes(broken)
        try:
            found = importers.read(path, **options)
        except UserError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
            outcomes.append(False)
            continue
        assert (found.family, found.config) == (whole.family, whole.config)
        assert jax.tree.map(np.shape, found.theta) == shapes
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(found.theta))
        outcomes.append(True)
    assert not all(outcomes[:300]) and not any(outcomes[300:])  # flips are often, truncations always refused


class Calls:
    """Pickles as a call of ``function``."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "call, named",
    [
        (Calls(os.system, "touch executed"), "posix.system"),
        (Calls(eval, "open('executed', 'w')"), "builtins.eval"),
        ({"nn": {"w0": Calls(exec, "open('executed', 'w')")}}, "builtins.exec"),
        (Calls(os.mkdir, Calls(os.system, "touch executed")), "posix.mkdir"),
        (Calls(np.save, "executed", 1), "numpy.save"),
        (collections.Counter, "collections.Counter"),
    ],
)
def test_imports_are_refused_by_name_and_nothing_runs(refused, tmp_path, monkeypatch, call, named, protocol):
    monkeypatch.chdir(tmp_path)
    program = pickle.dumps(call, protocol).replace(b"__builtin__", b"builtins")  # protocol 2 has Python 2's name
    assert f"refers to {named!r}, which is refused" in refused(program)
    assert [path.name for path in tmp_path.iterdir()] == ["hostile"]


@pytest.mark.parametrize(
    "old, new, message",
    [
        (b"ctorch\nFloatStorage", b"cposix\nsystem", "refers to 'posix.system'"),
        (b"ctorch\nFloatStorage", b"ctorch\nLoudStorage", "refers to 'torch.LoudStorage'"),
        (b"K \x85", b"K!\x85", "a tensor of shape [33] that does not fit its storage of 32"),
        (b"K\x01\x85", b"K\x02\x85", "a tensor of shape [32] that does not fit its storage of 32"),
        (b"K\x01\x85", b"J\xff\xff\xff\xff\x85", "shape or strides are not sizes"),
        (b"K'\x86", b"M\xff\xff\x86", "that does not fit its storage"),
        (b"X\x07\x00\x00\x00storage", b"X\x07\x00\x00\x00stowage", "that is not a storage"),
        (b"}", b"N", "a dict with keys that are not strings"),
    ],
)
def test_a_torch_file_names_no_more_and_tensors_stay_in_their_storage(refused, monkeypatch, old, new, message):
    whole, edited = zipfile.ZipFile(io.BytesIO(contents("torch", monkeypatch))), io.BytesIO()
    assert old in whole.read("weights/data.pkl")
    with zipfile.ZipFile(edited, "w") as archive:
        for name in whole.namelist():
            content = whole.read(name)
            archive.writestr(name, content.replace(old, new, 1) if name.endswith("data.pkl") else content)
    assert message in refused(edited.getvalue())


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


NDARRAY, DTYPE = [text("numpy") + text(name) + b"\x93" for name in ("ndarray", "dtype")]


def doubled_tuple(levels: int) -> bytes:
    """Instructions for a tuple of 2**levels elements, five bytes a level."""
    return b"K\x01" + b"".join(b"q%ch%c\x86" % (level, level) for level in range(levels))


def doubled_dict(levels: int) -> bytes:
    """The same as a dict of two dicts of two dicts ..."""
    program = b"K\x01"
    for level in range(levels):
        program = b"}(" + text("a") + program + b"q%c" % level + text("b") + b"h%cu" % level
    return program


@pytest.mark.parametrize(
    "program, message",
    [
        (b"cos\nsystem\n", "refers to 'os.system'"),
        (b"(ios\nsystem\n", "unsupported pickle instruction INST"),
        (b"(" + NDARRAY + b"o", "unsupported pickle instruction OBJ"),
        (NDARRAY + b")\x81", "unsupported pickle instruction NEWOBJ"),
        (b"\x82\x01", "unsupported pickle instruction EXT1"),
        (b"K\x01Q", "unsupported pickle instruction BINPERSID"),
        (NDARRAY + b")R", "calls 'numpy.ndarray', which is refused"),
        (text("x") + b")R", "calls 'str', which is refused"),
        # On a name, BUILD could change its replacement, for the next file as well.
        (DTYPE + b"}" + text("build") + DTYPE + b"sb", "sets the state of a Name, which is refused"),
        (b"}}b", "sets the state of a dict, which is refused"),
        (b"K\x01K\x01K\x02s", "keys that are not strings"),
        (b"K\x01K\x01a", "appends to something that is not a list"),
        (b"}q\x00" + text("a") + b"h\x00s", "more than 10000 entries"),  # it contains itself
        (doubled_dict(60), "more than 10000 entries"),
        # To hash, print or count these would take 2**60 steps.
        (b"}" + doubled_tuple(60) + b"K\x01s", "keys that are not strings"),
        (b"ccollections\nOrderedDict\n]" + doubled_tuple(60) + b"K\x01\x86a\x85R", "keys that are not strings"),
        (b"ccollections\nOrderedDict\n" + text("ab") + b"\x85R", "something else than pairs"),
        (DTYPE + doubled_tuple(60) + b"\x85R", "something else where a name should be"),
        (text("a") + doubled_tuple(60) + b"\x93", "something else where a name should be"),
        (b"}" + text("nn/~/b0") + doubled_tuple(60) + b"s", "'nn/~/b0' should have 1 axes or more"),
        (b"", "damaged, or no pickle file"),
        (b"}" * 1_000_001, "more than 1,000,000 instructions"),
    ],
)
def test_instructions_are_refused_by_name(refused, program, message):
    assert message in refused(b"\x80\x04" + program + b".")


def numpy_header(description: str) -> bytes:
    header = description.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def claimed_array(shape: list[int]) -> bytes:
    return msgpack.packb({"params": msgpack.ExtType(1, msgpack.packb((shape, "float32", b"1234")))})


def compressed() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(2**24))
    return file.getvalue()


def archive_bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as entry:
        for _ in range(65):
            entry.write(bytes(2**20))
    return file.getvalue()


HUGE = 2**40


@pytest.mark.parametrize(
    "data, message",
    [
        (numpy_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({HUGE},)}}"), "0 bytes that claims to be"),
        (numpy_header("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}"), "an array of type object"),
        (numpy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (__import__('os'),)}"), "damaged"),
        (struct.pack("<Q", HUGE) + b"{}", "none of the files read here"),
        (struct.pack("<Q", 2) + b"{}" + bytes(9), "damaged, or no safetensors file"),
        (claimed_array([HUGE, HUGE]), "4 bytes that claims to be float32"),
        (claimed_array([-1, -1]), "shape is not a list of up to 8 sizes"),
        (b"\x81\xa1x" + b"\xdd\xff\xff\xff\xff" * 500, "damaged, or no flax msgpack file"),  # lists of 2**32 - 1
        (b"\x81\xa1x" + b"\xdd\x00\x00\xff\xff" * 60_000, "damaged, or no flax msgpack file"),
        (b"\x81\xa1x" + b"\x81\xa1x" * 900 + b"\x01", "holds weights of none of"),  # deep
        (b"\x80\x05\x96" + struct.pack("<Q", HUGE) + b".", "damaged, or no pickle file"),  # a bytearray
        (b"\x80\x04Nr\xff\xff\xff\xff0.", "unsupported pickle instruction POP"),  # after a memo at 2**32 - 1
        (compressed(), "it is compressed"),
        (archive_bomb(), "it claims more than 67,108,864 bytes"),
    ],
)
def test_claims_cost_no_memory(refused, data, message):
    tracemalloc.start()
    try:
        assert message in refused(data)
        assert tracemalloc.get_traced_memory()[1] < 10 * len(data) + 2**20
    finally:
        tracemalloc.stop()
