"""Pretrained weights on disk: a folder with manifest.json and weights.safetensors.

The manifest says what the weights are, what they were meta-trained on and what was measured; its
sha256 pins the weights. Nothing is ever unpickled, and a checkpoint never makes code run: one of
a family that metaopt does not have loads only with ``family=`` given by its user.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from metaopt import families
from metaopt.core import Algorithm, Learned, Theta
from metaopt.errors import UserError, unknown

FORMAT_VERSION = 2
MANIFEST, WEIGHTS = "manifest.json", "weights.safetensors"
# Format 1 is older than kinds, and spelled a setting in another way.
RENAMED_SINCE_FORMAT_1 = {"celo2": {"orthogonalise": "orthogonalize"}}


class Checkpoint(NamedTuple):
    """A pretrained algorithm: how it is built, its meta-parameters, its manifest."""

    learned: Learned
    theta: Theta
    manifest: dict[str, Any]


def folders() -> list[Path]:
    """Where checkpoints are looked for: where ``save`` puts them, then the shipped ones."""
    package = Path(__file__).resolve().parent
    chosen = os.environ.get("METAOPT_CHECKPOINTS")
    shipped = [package / "checkpoints", package.parent / "checkpoints"]  # in a wheel, in the tree
    return [p for p in [Path(chosen or "checkpoints"), *shipped] if p.is_dir()]


def list_pretrained() -> list[str]:
    """Names that ``load`` knows on this machine."""
    return sorted({m.parent.name for folder in folders() for m in folder.glob(f"*/{MANIFEST}")})


def load(
    name: str | Path, num_steps: int | jax.Array | None = None, *, family: Any = None, **settings: Any
) -> Algorithm:
    """Loads a pretrained algorithm as what its users already know, e.g. an Optax optimizer.

    Args:
      name: one of ``list_pretrained()``, or the path of a checkpoint folder.
      num_steps: how many steps will be trained; needed by families that look at the fraction of
        training done.
      family: of a checkpoint whose family metaopt does not have: the object, or a reference to it, see
        ``families.build``.
      settings: fields of the family's config that replace the manifest's, e.g. ``learning_rate`` of
        celo2. Those that decide the shapes of theta have to stay.

    Returns:
      What the checkpoint's kind says, see ``families.KINDS``. Of kind "optimizer", a transformation:
      call ``update(grads, state, params, value=loss)``.

    Raises:
      UserError: if there is no such checkpoint, it is damaged or of another format, or its family is
        not one of metaopt's and ``family`` is not given.
      ValueError: if the family needs ``num_steps``.
    """
    found = read(name, family=family, **settings)
    return found.learned.bind(found.theta, num_steps=num_steps)


def read(name: str | Path, *, family: Any = None, **settings: Any) -> Checkpoint:
    """Reads and verifies a checkpoint: format version, sha256, names, shapes, dtypes.

    Args:
      name, family, settings: as for ``load``.

    Raises:
      UserError: naming what is wrong with it.
    """
    folder = find(name)
    manifest = read_manifest(folder)
    if family is None and not families.is_ours(manifest["family"]):
        raise UserError(
            f"checkpoint {name} is of the family {manifest['family']!r}, which metaopt does not have and will not run "
            f"unasked: pass family=, the object or path/to/file.py:name"
        )
    chosen = manifest["family"] if family is None else family
    learned = families.build(chosen, **manifest["config"] | settings)
    if learned.kind != manifest["kind"]:
        raise UserError(
            f"checkpoint {name} is of kind {manifest['kind']}, the family that was given builds a {learned.kind}: give "
            f"its own family, {manifest['family']}"
        )
    return Checkpoint(learned, unflatten(read_arrays(folder), _shapes(learned), folder), manifest)


def read_arrays(name: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint by path, their sha256 verified. Raises UserError if they are damaged."""
    folder = find(name)
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"{folder}: {WEIGHTS} is missing")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != read_manifest(folder)["sha256"]:
        raise UserError(f"{path} is damaged: its sha256 is not the one in {MANIFEST}; fetch it again")
    try:
        return safetensors.numpy.load(data)
    except Exception as error:
        raise UserError(f"{path} is not a safetensors file: {error}") from error


def read_manifest(name: str | Path) -> dict[str, Any]:
    """The manifest of a checkpoint, as of the newest format. Raises UserError if it is missing or unreadable."""
    path = find(name) / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if not isinstance(manifest, dict):
        raise UserError(f"{path} is damaged: it should hold a JSON object")
    version = manifest.get("format_version")
    if version not in range(1, FORMAT_VERSION + 1):
        raise UserError(
            f"{path} has format version {version!r}, this metaopt reads 1 to {FORMAT_VERSION}: update metaopt"
        )
    if version == 1:
        manifest |= {"format_version": FORMAT_VERSION, "kind": "optimizer"}
    for field in ("kind", "family", "config", "sha256"):
        if field not in manifest:
            raise UserError(f"{path} is damaged: the field {field!r} is missing")
    if version == 1:
        renamed = RENAMED_SINCE_FORMAT_1.get(manifest["family"], {})
        manifest["config"] = {renamed.get(name, name): value for name, value in manifest["config"].items()}
    return manifest


def save(name: str | Path, family: Any, config: dict[str, Any], theta: Theta, **about: Any) -> Path:
    """Writes a checkpoint that ``load`` reads back bit for bit.

    Args:
      name: a plain name goes into METAOPT_CHECKPOINTS or, where that is not set, the
        ``checkpoints`` folder of the working directory; a path is taken as it is.
      family, config: as for ``families.build``.
      theta: meta-parameters, any tree of arrays.
      about: further fields of the manifest, JSON values, e.g. ``meta_trained_on``.

    Returns:
      The folder.

    Raises:
      UserError: if the folder exists and is no checkpoint, or theta is not finite or
        not of this family.
    """
    arrays = flatten(theta)
    learned = families.build(family, **config)
    unflatten(arrays, _shapes(learned), folder_of(name))
    label = family if isinstance(family, str) else f"<{families.label(family)}>"
    return write(name, learned.kind, label, config, arrays, **about)


def write(
    name: str | Path, kind: str, family: str, config: dict[str, Any], arrays: dict[str, np.ndarray], **about: Any
) -> Path:
    """Writes a checkpoint of arrays by path, without looking at the code of their family; ``save`` does.

    Raises:
      UserError: if the folder exists and is no checkpoint, or an array is not finite.
    """
    folder = folder_of(name)
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / MANIFEST).exists())):
        raise UserError(f"{folder} exists and is not a checkpoint: choose another name")
    for path, array in arrays.items():
        if not np.all(np.isfinite(array)):
            raise UserError(f"theta holds values that are not finite at {path!r}: nothing was written")
    # safetensors writes memory as it lies, and a transposed array lies in another order.
    arrays = {path: np.asarray(array, order="C") for path, array in arrays.items()}
    data = safetensors.numpy.save(arrays)
    manifest = {
        "format_version": FORMAT_VERSION,
        "name": folder.name,
        "kind": kind,
        "family": family,
        "config": config,
        "theta": {path: {"shape": list(a.shape), "dtype": str(a.dtype)} for path, a in arrays.items()},
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


def folder_of(name: str | Path) -> Path:
    """Where ``save`` writes: a plain name is inside a folder of checkpoints, a path is taken as it is."""
    if str(name) in ("", ".", ".."):
        raise UserError(f"{str(name)!r} is no name for a checkpoint: choose another")
    if is_path(name):
        return Path(name).expanduser()
    return Path(os.environ.get("METAOPT_CHECKPOINTS", "checkpoints")) / name


def is_path(name: str | Path) -> bool:
    """Whether this is a path, ``./mine``, and not a plain name, ``mine``."""
    return len(Path(name).parts) > 1 or (isinstance(name, str) and ("/" in name or name.startswith((".", "~"))))


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
    candidates = [Path(name).expanduser()] if is_path(name) else [folder / name for folder in folders()]
    for candidate in candidates:
        if (candidate / MANIFEST).is_file():
            return candidate
    raise unknown("checkpoint", str(name), list_pretrained())


def flatten(theta: Theta) -> dict[str, np.ndarray]:
    """The leaves of theta by their dotted path; of a single array, by "theta".

    Raises:
      UserError: if two leaves have the same path, e.g. {"a.b": x, "a": {"b": y}}.
    """
    arrays: dict[str, np.ndarray] = {}
    for path, leaf in jax.tree.leaves_with_path(theta):
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "theta"
        if name in arrays:
            raise UserError(f"theta has two entries that are both called {name!r}: rename one of its keys")
        arrays[name] = np.asarray(leaf)
    return arrays


def unflatten(arrays: dict[str, np.ndarray], expected: Theta, source: Path) -> Theta:
    """Arrays by path in the structure of theta, every name, shape and dtype checked.

    Args:
      arrays: as ``flatten`` returns.
      expected: theta, or its shapes.
      source: where they were read, for messages.

    Raises:
      UserError: naming the first array that does not fit.
    """
    structure = jax.tree.structure(expected)
    indices = flatten(structure.unflatten(range(structure.num_leaves)))
    leaves = jax.tree.leaves(expected)
    named = {path: leaves[int(i)] for path, i in indices.items()}
    for path in [*named, *arrays]:
        if path not in arrays:
            raise UserError(f"{source}: the weights lack {path!r}")
        if path not in named:
            raise UserError(f"{source}: the weights hold {path!r}, which the family does not have")
        ours, theirs = (named[path].shape, named[path].dtype), (arrays[path].shape, arrays[path].dtype)
        if ours != theirs:
            raise UserError(f"{source}: {path!r} should be {ours[1]}{list(ours[0])}, is {theirs[1]}{list(theirs[0])}")
    return structure.unflatten([jnp.asarray(arrays[path]) for path in named])


def _shapes(learned: Learned) -> Theta:
    return jax.eval_shape(learned.init, jax.random.key(0))
