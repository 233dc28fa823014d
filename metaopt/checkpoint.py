"""Pretrained weights on disk: a folder with manifest.json and weights.safetensors.

The manifest says what the weights are, what they were meta-trained on and what was
measured; its sha256 pins the weights. Nothing is ever unpickled.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy

from metaopt import optimizers
from metaopt.core import LearnedOptimizer, Theta
from metaopt.errors import UserError, unknown

FORMAT_VERSION = 1
MANIFEST, WEIGHTS = "manifest.json", "weights.safetensors"


class Checkpoint(NamedTuple):
    """A pretrained learned optimizer: its rule, its meta-parameters, its manifest."""

    optimizer: LearnedOptimizer
    theta: Theta
    manifest: dict[str, Any]


def folders() -> list[Path]:
    """Where checkpoints are looked for: METAOPT_CHECKPOINTS first, then the shipped ones."""
    package = Path(__file__).resolve().parent
    chosen = os.environ.get("METAOPT_CHECKPOINTS")
    candidates = [package / "checkpoints", package.parent / "checkpoints"]  # in a wheel, in the tree
    return [p for p in ([Path(chosen)] if chosen else []) + candidates if p.is_dir()]


def list_pretrained() -> list[str]:
    """Names that ``load`` knows on this machine."""
    return sorted({m.parent.name for folder in folders() for m in folder.glob(f"*/{MANIFEST}")})


def load(
    name: str | Path, num_steps: int | jax.Array | None = None, **settings: Any
) -> optax.GradientTransformationExtraArgs:
    """Loads a pretrained learned optimizer as an Optax optimizer.

    Args:
      name: one of ``list_pretrained()``, or the path of a checkpoint folder.
      num_steps: how many steps will be trained; needed by families that look at the
        fraction of training done.
      settings: of the family, in the place of the manifest's, e.g. ``learning_rate`` of
        celo2. Those that decide the shapes of theta have to stay.

    Returns:
      A transformation; call ``update(grads, state, params, value=loss)``.

    Raises:
      UserError: if there is no such checkpoint, or it is damaged or of another format.
      ValueError: if the family needs ``num_steps``.
    """
    found = read(name, **settings)
    return found.optimizer.bind(found.theta, num_steps=num_steps)


def read(name: str | Path, **settings: Any) -> Checkpoint:
    """Reads and verifies a checkpoint: format version, sha256, names, shapes, dtypes.

    ``settings`` as for ``load``.

    Raises:
      UserError: naming what is wrong with it.
    """
    folder = find(name)
    manifest = read_manifest(folder)
    optimizer = optimizers.build(manifest["family"], **manifest["config"] | settings)
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"{folder}: {WEIGHTS} is missing")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != manifest["sha256"]:
        raise UserError(f"{path} is damaged: its sha256 is not the one in {MANIFEST}; fetch it again")
    try:
        arrays = safetensors.numpy.load(data)
    except Exception as error:
        raise UserError(f"{path} is not a safetensors file: {error}") from error
    return Checkpoint(optimizer, _unflatten(arrays, optimizer, folder), manifest)


def read_manifest(name: str | Path) -> dict[str, Any]:
    """The manifest of a checkpoint. Raises UserError if it is missing or unreadable."""
    path = find(name) / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if not isinstance(manifest, dict):
        raise UserError(f"{path} is damaged: it should hold a JSON object")
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(f"{path} has format version {version!r}, this metaopt reads {FORMAT_VERSION}: update metaopt")
    for field in ("family", "config", "sha256"):
        if field not in manifest:
            raise UserError(f"{path} is damaged: the field {field!r} is missing")
    return manifest


def save(name: str | Path, family: str, config: dict[str, Any], theta: Theta, **about: Any) -> Path:
    """Writes a checkpoint that ``load`` reads back bit for bit.

    Args:
      name: a plain name goes into METAOPT_CHECKPOINTS or, where that is not set, the
        ``checkpoints`` folder of the working directory; a path is taken as it is.
      family, config: as for ``optimizers.build``.
      theta: meta-parameters, a tree of dicts.
      about: further fields of the manifest, JSON values, e.g. ``meta_trained_on``.

    Returns:
      The folder.

    Raises:
      UserError: if the folder exists and is no checkpoint, or theta is not finite or
        not of this family.
    """
    folder = Path(name)
    if folder.name == str(name):
        folder = Path(os.environ.get("METAOPT_CHECKPOINTS", "checkpoints")) / folder
    if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST).exists():
        raise UserError(f"{folder} exists and is not a checkpoint: choose another name")
    # safetensors writes memory as it lies, and a transposed array lies in another order.
    arrays = {path: np.asarray(leaf, order="C") for path, leaf in _flatten(theta).items()}
    _unflatten(arrays, optimizers.build(family, **config), folder)
    for path, array in arrays.items():
        if not np.all(np.isfinite(array)):
            raise UserError(f"theta holds values that are not finite at {path!r}: nothing was written")
    data = safetensors.numpy.save(arrays)
    manifest = {
        "format_version": FORMAT_VERSION,
        "name": folder.name,
        "family": family,
        "config": config,
        "theta": {p: {"shape": list(a.shape), "dtype": str(a.dtype)} for p, a in arrays.items()},
        "sha256": hashlib.sha256(data).hexdigest(),
        **about,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / WEIGHTS).write_bytes(data)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write checkpoint {folder}: {error.strerror}") from error
    return folder


def record(name: str | Path, **about: Any) -> None:
    """Adds fields to the manifest of a checkpoint, e.g. what was measured; the weights stay."""
    path = find(name) / MANIFEST
    manifest = read_manifest(name)
    for field, value in about.items():
        old = manifest.get(field)
        manifest[field] = old | value if isinstance(old, dict) and isinstance(value, dict) else value
    path.write_text(json.dumps(manifest, indent=2) + "\n")


def find(name: str | Path) -> Path:
    """The folder of a checkpoint. Raises UserError, naming the nearest, if there is none."""
    candidates = [Path(name)] if len(Path(name).parts) > 1 else [folder / name for folder in folders()]
    for candidate in candidates:
        if (candidate / MANIFEST).is_file():
            return candidate
    raise unknown("checkpoint", str(name), list_pretrained())


def _flatten(theta: Theta) -> dict[str, Any]:
    """Leaves by their dotted path."""
    return {".".join(str(k.key) for k in path): leaf for path, leaf in jax.tree.leaves_with_path(theta)}


def _unflatten(arrays: dict[str, np.ndarray], optimizer: LearnedOptimizer, folder: Path) -> Theta:
    """Arrays by path -> theta of ``optimizer``, every name, shape and dtype checked."""
    expected = jax.eval_shape(optimizer.init, jax.random.key(0))
    named = _flatten(expected)
    for path in [*named, *arrays]:
        if path not in arrays:
            raise UserError(f"{folder}: the weights lack {path!r}")
        if path not in named:
            raise UserError(f"{folder}: the weights hold {path!r}, which the family does not have")
        ours, theirs = (named[path].shape, named[path].dtype), (arrays[path].shape, arrays[path].dtype)
        if ours != theirs:
            raise UserError(f"{folder}: {path!r} should be {ours[1]}{list(ours[0])}, is {theirs[1]}{list(theirs[0])}")
    return jax.tree.unflatten(jax.tree.structure(expected), [jnp.asarray(arrays[path]) for path in named])
