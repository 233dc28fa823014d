"""Pretrained weights on disk: a folder with manifest.json and weights.safetensors.

The manifest says what the weights are, what they were meta-trained on and what was measured; its
sha256 pins the weights, its seal the rest. Nothing is ever unpickled, and a checkpoint never makes
code run: one of a family that metaopt does not have loads only with ``family=`` given by its user.
"""

import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from metaopt import families, manifests, replacing, tensors
from metaopt.core import Algorithm, Learned, Theta
from metaopt.errors import UserError, unknown
from metaopt.leaves import flatten, unflatten

MANIFEST, WEIGHTS = manifests.FILE, "weights.safetensors"
WRITTEN_BY_SAVE = {"format_version", "name", "kind", "theta", "sha256", manifests.SEAL}


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
    """Reads and verifies a checkpoint: seal, sha256, names, shapes, dtypes.

    Args:
      name, family, settings: as for ``load``.

    Raises:
      UserError: naming what is wrong with it.
    """
    return _build(name, read_manifest(name), family, settings)


def _build(name: str | Path, manifest: dict[str, Any], family: Any, settings: dict[str, Any]) -> Checkpoint:
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
    folder = find(name)
    return Checkpoint(learned, unflatten(_read_weights(folder, manifest["sha256"]), _shapes(learned), folder), manifest)


def read_arrays(name: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint by path, their sha256 verified. Raises UserError if they are damaged."""
    return _read_weights(find(name), read_manifest(name)["sha256"])


def _read_weights(folder: Path, sha256: str) -> dict[str, np.ndarray]:
    path = folder / WEIGHTS
    # A write that was cut short may have left the weights of the manifest beside their place, see ``write``.
    found = [file.read_bytes() for file in (path, replacing.unfinished(path)) if file.is_file()]
    if not found:
        raise UserError(f"{folder}: {WEIGHTS} is missing; fetch it again")
    data = next((data for data in found if hashlib.sha256(data).hexdigest() == sha256), None)
    if data is None:
        raise UserError(f"{path} is damaged: its sha256 is not the one in {MANIFEST}; fetch it again")
    try:
        return tensors.load(data)
    except UserError as error:
        raise UserError(f"{path} is not a file of metaopt: {error}") from error


def read_manifest(name: str | Path) -> dict[str, Any]:
    """The manifest of a checkpoint, as of the newest format. Raises UserError if it is not what was sealed."""
    return manifests.read(find(name))


def save(
    name: str | Path, family: Any, config: dict[str, Any], theta: Theta, *, overwrite: bool = False, **about: Any
) -> Path:
    """Writes a checkpoint that ``load`` reads back bit for bit.

    Args:
      name: a plain name goes into METAOPT_CHECKPOINTS or, where that is not set, the
        ``checkpoints`` folder of the working directory; a path is taken as it is.
      family, config: as for ``families.build``.
      theta: meta-parameters, any tree of arrays.
      overwrite: whether a checkpoint of this name may be replaced.
      about: further fields of the manifest, JSON values, e.g. ``meta_trained_on``.

    Returns:
      The folder.

    Raises:
      UserError: if there is something of this name already, theta is not finite or not of this
        family, or a field of ``about`` is no JSON.
    """
    arrays = flatten(theta)
    learned = families.build(family, **config)
    unflatten(arrays, _shapes(learned), folder_of(name))
    for field in about:
        if field in WRITTEN_BY_SAVE:
            raise UserError(
                f"the field {field!r} of a manifest is written by metaopt itself: choose another name for it"
            )
    label = family if isinstance(family, str) else f"<{families.label(family)}>"
    return write(name, learned.kind, label, config, arrays, overwrite=overwrite, **about)


def write(
    name: str | Path,
    kind: str,
    family: str,
    config: dict[str, Any],
    arrays: dict[str, np.ndarray],
    *,
    overwrite: bool = False,
    **about: Any,
) -> Path:
    """Writes a checkpoint of arrays by path, without looking at the code of their family; ``save`` does.

    A crash at any moment leaves the checkpoint that was there, or none, or the new one, whole: what
    counts is the manifest, which is replaced in one step, and weights are read from beside their
    place while it pins those.

    Raises:
      UserError: if there is something of this name already, or an array is not finite or of a type that
        cannot be kept.
    """
    folder = folder_of(name)
    _check_free(folder, overwrite)
    for path, array in arrays.items():
        if not np.all(np.isfinite(array)):
            raise UserError(f"theta holds values that are not finite at {path!r}: nothing was written")
    data = tensors.dump(arrays)
    manifest = {
        "format_version": manifests.FORMAT_VERSION,
        "name": folder.name,
        "kind": kind,
        "family": family,
        "config": config,
        "theta": {path: {"shape": list(a.shape), "dtype": str(a.dtype)} for path, a in arrays.items()},
        "sha256": hashlib.sha256(data).hexdigest(),
        **about,
    }
    _replace(folder, {MANIFEST: manifests.encode(manifest), WEIGHTS: data})
    return folder


def _check_free(folder: Path, overwrite: bool) -> None:
    """Raises UserError if there is something in this folder that may not be replaced."""
    try:
        entries = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
    except OSError as error:
        raise UserError(f"cannot write checkpoint {folder}: {error.strerror}") from error
    if MANIFEST in entries and not overwrite:
        raise UserError(
            f"there is a checkpoint {folder} already: choose another name or, to replace it, pass overwrite=True "
            f"(--overwrite on the command line)"
        )
    leftovers = {replacing.unfinished(folder / name).name for name in (WEIGHTS, MANIFEST)}
    if MANIFEST not in entries and entries - leftovers:
        raise UserError(f"{folder} exists and is not a checkpoint: choose another name")


def _replace(folder: Path, files: dict[str, bytes]) -> None:
    """Replaces files of a checkpoint; the manifest comes first and is what counts."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        left = replacing.unfinished(folder / WEIGHTS)
        if WEIGHTS in files and left.is_file() and _pins(folder, left):
            left.replace(folder / WEIGHTS)  # or the only copy of the weights that still count would be written over
        replacing.replace(folder, files)
    except OSError as error:
        raise UserError(f"cannot write checkpoint {folder}: {error.strerror}") from error


def _pins(folder: Path, weights: Path) -> bool:
    """Whether there is a manifest that these weights belong to."""
    try:
        return manifests.read(folder)["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    except UserError:
        return False


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
    """Adds fields to the manifest of a checkpoint, e.g. what was measured, and seals it; the weights stay."""
    manifest = read_manifest(name)
    for field, value in about.items():
        old = manifest.get(field)
        manifest[field] = old | value if isinstance(old, dict) and isinstance(value, dict) else value
    _replace(find(name), {MANIFEST: manifests.encode(manifest)})


def seal(name: str | Path) -> Path:
    """Seals a manifest that was edited by hand, or that is of an older format and has no seal yet.

    Returns:
      The manifest's path.

    Raises:
      UserError: if it cannot be read, or no longer fits the weights.
    """
    folder = find(name)
    manifest = manifests.read(folder, check_seal=False)
    if families.is_ours(manifest["family"]):
        _build(name, manifest, None, {})
    else:
        _read_weights(folder, manifest["sha256"])
    _replace(folder, {MANIFEST: manifests.encode(manifest)})
    return folder / MANIFEST


def find(name: str | Path) -> Path:
    """The folder of a checkpoint. Raises UserError, naming the nearest, if there is none."""
    candidates = [Path(name).expanduser()] if is_path(name) else [folder / name for folder in folders()]
    for candidate in candidates:
        if (candidate / MANIFEST).is_file():
            return candidate
    raise unknown("checkpoint", str(name), list_pretrained())


def _shapes(learned: Learned) -> Theta:
    return jax.eval_shape(learned.init, jax.random.key(0))
