"""safetensors: named NumPy arrays to bytes and back, of every type that the format and NumPy share.

Source: huggingface/safetensors; its own reader for NumPy does not know bfloat16.
"""

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from metaopt.errors import UserError

# The format's name of each type -> NumPy's; the last ones are known to NumPy through JAX.
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "C64": "complex64", "BOOL": "bool"}
DTYPES |= {f"{kind}{bits}": f"{name}{bits}" for bits in (8, 16, 32, 64) for kind, name in (("I", "int"), ("U", "uint"))}
DTYPES |= {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
DTYPES |= {"F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu"}


def dump(arrays: dict[str, np.ndarray]) -> bytes:
    """The file that ``load`` reads back bit for bit.

    Raises:
      UserError: naming the first array of a type that the format does not have.
    """
    for name, array in arrays.items():
        if array.dtype.name not in DTYPES.values():
            raise UserError(f"{name!r} is of type {array.dtype}, which safetensors cannot hold: use float32")
    try:
        # safetensors writes memory as it lies, and a transposed array lies in another order.
        return safetensors.numpy.save({name: np.asarray(array, order="C") for name, array in arrays.items()})
    except safetensors.SafetensorError as error:  # older versions have fewer types
        raise UserError(f"safetensors cannot hold these arrays: {error}; use float32") from error


def load(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of a file by name, sorted.

    Raises:
      UserError: if it is not a safetensors file, or naming the first array of a type unknown here.
    """
    try:
        entries = dict(safetensors.deserialize(data))
    except Exception as error:  # SafetensorError, or whatever a damaged header leads to
        raise UserError(f"it is damaged, or no safetensors file: {str(error)[:200]}") from error
    for name, entry in entries.items():
        if entry["dtype"] not in DTYPES:
            raise UserError(f"{name!r} is of type {entry['dtype']}; known are {', '.join(DTYPES)}")
    return {
        name: np.frombuffer(entry["data"], jnp.dtype(DTYPES[entry["dtype"]])).reshape(entry["shape"])
        for name, entry in sorted(entries.items())
    }
