"""Files of other projects for the tests: seeded samples, and a writer of PyTorch's zip files."""

import io
import pickle
import sys
import types
import zipfile
from pathlib import Path

import numpy as np

from tests import golden

FOLDER = Path(golden.__file__).parent
FLAGS = {"bugged_loss_features": False, "bugged_lstm_state": False, "relative": True}
# Options needed to import each.
SAMPLES = {
    "mulo_theta_seeded.pickle": {"step_multiplier": 0.01},
    "velo_adafac_h4.ckpt": {"step_multiplier": 0.001},
    "velo_hyper_v2_fixed.ckpt": FLAGS,
    "celo_theta_seeded.state": {},
    "celo2_theta_seeded.state": {"variant": "celo2", "learning_rate": 0.001},
    "metamlp_seeded.safetensors": {"decays": "mulo"},
    "celo2mlp_seeded.safetensors": {"variant": "elo", "learning_rate": 0.001},
}
# PyTorch's names of NumPy's types.
STORAGES = {"float32": "Float", "float16": "Half", "bfloat16": "BFloat16", "float64": "Double"}
STORAGES |= {"int16": "Short", "uint8": "Byte", "bool": "Bool"}


def sample(name: str) -> Path:
    return FOLDER / name


def torch_zip(arrays: dict[str, np.ndarray], monkeypatch, big_endian: bool = False) -> bytes:
    """A state_dict as torch.save writes it, with the instructions that Python's own pickler gives.

    torch is not needed: stand-ins with the names of its classes are enough for the pickler.
    """
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    dtype = next(iter(arrays.values())).dtype
    storage_name = f"{STORAGES[dtype.name]}Storage"
    storage_type = type(storage_name, (), {"__module__": "torch"})

    def rebuild(*_):
        raise AssertionError("only named")

    rebuild.__module__, rebuild.__qualname__, rebuild.__name__ = "torch._utils", *["_rebuild_tensor_v2"] * 2
    monkeypatch.setattr(torch, storage_name, storage_type, raising=False)
    monkeypatch.setattr(utils, "_rebuild_tensor_v2", rebuild, raising=False)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)

    class Storage:
        def __init__(self, key: int, array: np.ndarray):
            self.identifier = ("storage", storage_type, str(key), "cpu", array.size)

    class Tensor:
        def __init__(self, key: int, array: np.ndarray):
            self.key, self.array = key, array

        def __reduce__(self):
            strides = tuple(s // self.array.itemsize for s in self.array.strides)
            return rebuild, (Storage(self.key, self.array), 0, self.array.shape, strides, False, {})

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return obj.identifier if isinstance(obj, Storage) else None

    text = io.BytesIO()
    Pickler(text, protocol=2).dump({name: Tensor(i, array) for i, (name, array) in enumerate(arrays.items())})
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("weights/data.pkl", text.getvalue())
        archive.writestr("weights/byteorder", "big" if big_endian else "little")
        for i, array in enumerate(arrays.values()):
            kept = array.ravel(order="K").view(f"u{dtype.itemsize}")  # in the order of memory
            archive.writestr(f"weights/data/{i}", (kept.byteswap() if big_endian else kept).tobytes())
    return file.getvalue()
