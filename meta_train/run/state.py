"""Saving and restoring the state of a run, with Orbax.

Theta is a separate item of every saved step, so that it can be read without the code that created it.
"""

import dataclasses
import hashlib
import math
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import checkpoint_managers

from meta_train.outer import TrainState
from meta_train.parallel import processes
from meta_train.run import directory
from metaopt.core import Theta
from metaopt.errors import UserError

UNFINISHED = "saving was not finished"  # the fault of a saved step without checksums
THETA, REST = "theta", "rest"  # the items of a saved step
SUMS = "SHA256SUMS"  # file with the checksums of all files of a saved step, for ``sha256sum -c``; written last


class StateStore:
    """The ``state/`` folder of a run: the two latest states and the best one.

    Every process of a run opens it and saves its shards of the state. The latest and the best
    states have separate policies, because Orbax's own ``max_to_keep`` with ``best_fn`` deletes
    the newest state if it is not among the best.
    """

    def __init__(self, run_dir: Path):
        policy = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(2),
                checkpoint_managers.BestN(get_metric_fn=_saved_meta_loss, reverse=True, n=1),
            ]
        )
        # Not in the background: a state is small, and its checksums are written after the save.
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            enable_async_checkpointing=False,
            best_fn=_saved_meta_loss,  # without it Orbax does not write the metrics, and a resumed run finds none
            best_mode="min",
        )
        self._folder = run_dir.resolve() / "state"
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, state: TrainState, meta_loss: float) -> None:
        """Saves ``state``, which is on disk when this returns.

        Args:
          state: complete state of the run.
          meta_loss: meta-loss by which the best state is chosen.

        Raises:
          UserError: if it cannot be written, e.g. because the disk is full. Earlier states are
            not affected.
        """
        # A large number in place of NaN, which could not be ranked.
        metrics = {"meta_loss": meta_loss if math.isfinite(meta_loss) else 1e30}
        step = int(state.step)
        try:
            # force: else a process that lists the folder late skips the save, and the others wait for it.
            items = {THETA: {THETA: state.theta}, REST: dataclasses.replace(state, theta=())}
            saved = ocp.args.Composite(**{name: ocp.args.StandardSave(item) for name, item in items.items()})
            self._manager.save(step, args=saved, metrics=metrics, force=True)
            processes.on_first(_write_sums, self._folder / str(step))
        except Exception as error:
            if processes.is_lost_process(error):
                raise
            raise self._cannot_write(error) from error

    def close(self) -> None:
        self._manager.close()

    def _cannot_write(self, error: Any) -> UserError:
        return UserError(
            f"cannot save to {self._folder}: {_first_line(error)}; free some space or choose another folder, "
            "then continue with --resume"
        )


def restore(run_dir: Path, step: int, like: TrainState) -> TrainState:
    """Reads a saved step, whatever number of processes and devices saved it.

    Args:
      run_dir: run directory, whose run may be active.
      step: saved outer step.
      like: state with the structure, dtypes and shardings of the result.

    Raises:
      UserError: if it cannot be read, e.g. because it belongs to another recipe.
    """
    theta = _read(run_dir, step, THETA, {THETA: like.theta})[THETA]
    rest: TrainState = _read(run_dir, step, REST, dataclasses.replace(like, theta=()))
    return dataclasses.replace(rest, theta=theta)


def read_theta(run_dir: Path, step: int) -> Theta:
    """Reads theta of a saved step as dicts and lists of arrays on one device; no recipe is needed.

    Args:
      run_dir: run directory.
      step: saved outer step.

    Raises:
      UserError: if it cannot be read.
    """
    here = SingleDeviceSharding(jax.devices()[0])
    folder: Any = _folder(run_dir, step) / THETA
    saved = ocp.StandardCheckpointHandler().metadata(folder)
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), saved.tree)
    return _read(run_dir, step, THETA, like)[THETA]


def _read(run_dir: Path, step: int, item: str, like: Any) -> Any:
    """Reads an item of a saved step, with the structure, dtypes and shardings of ``like``."""
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
            return checkpointer.restore(_folder(run_dir, step) / item, abstract)
    except Exception as error:
        if processes.is_lost_process(error):
            raise
        folder = run_dir.resolve() / "state"
        raise UserError(f"cannot restore outer step {step} from {folder}: {_first_line(error)}") from error


def _folder(run_dir: Path, step: int) -> Path:
    return run_dir.resolve() / "state" / str(step)


def newest(run_dir: Path) -> int | None:
    """The newest outer step whose saved state is intact; None if nothing was ever saved.

    A warning names later states that are damaged, or were being saved when the run was killed.

    Raises:
      UserError: if there are saved states, but none is intact.
    """
    faults = []
    for step in sorted(_steps(run_dir), reverse=True):
        fault = _fault(run_dir / "state" / str(step))
        if fault is None:
            return step
        print(f"warning: skipped outer step {step} of {run_dir}: {fault}", flush=True)
        if fault != UNFINISHED:  # a state that was never complete is not a damaged one
            faults.append(f"outer step {step}: {fault}")
    if faults:
        raise UserError(f"{run_dir / 'state'} holds no intact state ({'; '.join(faults)}): start another run")
    return None


def set_damaged_aside(run_dir: Path) -> int | None:
    """As ``newest``; later states are moved to ``damaged/``, so that the run can save these steps again."""
    for unfinished in (run_dir / "state").glob("*.orbax-checkpoint-tmp"):
        shutil.rmtree(unfinished)
    found = newest(run_dir)
    for step in _steps(run_dir):
        if found is None or step > found:
            target = run_dir / "damaged" / str(step)
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(exist_ok=True)
            (run_dir / "state" / str(step)).rename(target)
    return found


def find(run_dir: Path, step: int | None) -> int:
    """A saved outer step with an intact state.

    Args:
      run_dir: run directory.
      step: the outer step that is asked for; None is the newest.

    Raises:
      UserError: if there is no such step, or its state is damaged.
    """
    directory.check_name(run_dir)
    if step is None:
        found = newest(run_dir)
        if found is None:
            raise UserError(f"{run_dir} has no saved state yet")
        return found
    if step not in _steps(run_dir):
        raise UserError(f"{run_dir} has no saved outer step {step}: there are {sorted(_steps(run_dir)) or 'none'}")
    if fault := _fault(run_dir / "state" / str(step)):
        raise UserError(f"outer step {step} of {run_dir} is damaged: {fault}")
    return step


def _steps(run_dir: Path) -> list[int]:
    return [int(path.name) for path in (run_dir / "state").glob("*") if path.name.isdigit()]


def _write_sums(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{_digest(path)}  {path.relative_to(folder)}\n" for path in files]
    temporary = folder / f"{SUMS}.tmp"
    with temporary.open("w") as file:
        file.write("".join(lines))
        file.flush()
        os.fsync(file.fileno())  # else the file may be empty after a crash of the node
    temporary.rename(folder / SUMS)


def _fault(folder: Path) -> str | None:
    """The fault of a saved step, or None. Orbax does not notice if a byte of an array has changed."""
    sums = (folder / SUMS).read_text() if (folder / SUMS).is_file() else ""
    if not sums:
        return UNFINISHED
    for line in sums.splitlines():
        digest, _, name = line.partition("  ")
        if not (folder / name).is_file():
            return f"{name} is missing"
        if _digest(folder / name) != digest:
            return f"{name} has changed since it was written"
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _saved_meta_loss(metrics: dict[str, float]) -> float:
    return metrics["meta_loss"]


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
