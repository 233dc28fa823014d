"""The manifest of a checkpoint: what the weights are, in JSON, under a seal.

The seal is the sha256 of everything else the manifest says, so that a changed digit of a setting is
found like one of the weights. Prose is under it too: a licence or a result is a claim as much as a
setting is, and one rule without exceptions is easier to trust. Spaces and the order of entries do
not count. Whoever edits a manifest by hand seals it again with ``metaopt seal NAME``.
"""

import hashlib
import json
import shlex
from pathlib import Path
from typing import Any

from metaopt.errors import UserError

FILE = "manifest.json"
FORMAT_VERSION = 3
SEALED_SINCE = 3  # the first format with a seal
SEAL = "seal"
FIELDS = {"kind": str, "family": str, "config": dict, "sha256": str}  # what every manifest must have
# Format 1 is older than kinds, and spelled a setting in another way.
RENAMED_SINCE_FORMAT_1 = {"celo2": {"orthogonalise": "orthogonalize"}}


def read(folder: Path, check_seal: bool = True) -> dict[str, Any]:
    """The manifest in a folder, without its seal and as of the newest format.

    Args:
      folder: that of the checkpoint.
      check_seal: False to read one that was edited by hand.

    Raises:
      UserError: naming the file, if it is missing, unreadable, or not what was sealed.
    """
    path = folder / FILE
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        seal = manifest.pop(SEAL, None) if isinstance(manifest, dict) else None
        is_sealed = seal == _seal_of(manifest)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}; fetch it again, or mend it") from error
    if not isinstance(manifest, dict):
        raise UserError(f"{path} is damaged: it should hold a JSON object; fetch it again")
    version = manifest.get("format_version")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {version!r}, this metaopt reads 1 to {FORMAT_VERSION}: update metaopt"
        )
    # An older format has no seal; one that has it was made by damage to the version.
    if check_seal and (seal is not None or version >= SEALED_SINCE) and not is_sealed:
        command = shlex.join(["metaopt", "seal", str(folder) if folder.is_absolute() else f"./{folder}"])
        raise UserError(
            f"{path} is damaged or was edited: it does not say what was sealed; fetch it again or, if you edited it, "
            f"run: {command}"
        )
    if version == 1:
        manifest = {"format_version": version, "kind": "optimizer"} | manifest
    for field, kind in FIELDS.items():
        if not isinstance(manifest.get(field), kind):
            what = "is missing" if field not in manifest else f"should be of type {kind.__name__}"
            raise UserError(f"{path} is damaged: the field {field!r} {what}; fetch it again")
    if version == 1:
        renamed = RENAMED_SINCE_FORMAT_1.get(manifest["family"], {})
        manifest["config"] = {renamed.get(name, name): value for name, value in manifest["config"].items()}
    return manifest | {"format_version": FORMAT_VERSION}


def encode(manifest: dict[str, Any]) -> bytes:
    """A manifest as it is written, with its seal. Raises UserError, naming the field that is no JSON."""
    for field, value in manifest.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"the field {field!r} of the manifest is no JSON: {error}; nothing was written") from error
    as_read = json.loads(json.dumps(manifest))  # keys are text there, tuples are lists
    as_read.pop(SEAL, None)
    return (json.dumps(as_read | {SEAL: _seal_of(as_read)}, indent=2) + "\n").encode()


def _seal_of(manifest: Any) -> str:
    """sha256 of a manifest without its seal, in the one form that neither spaces nor order change."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
