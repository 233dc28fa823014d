"""Saving and restoring the state of a run, with Orbax."""

import math
from pathlib import Path
from typing import Any, cast

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from meta_train.outer import TrainState
from metaopt.errors import UserError


class StateStore:
    """The ``state/`` folder of a run: the two latest states and the best one.

    Latest and best are kept apart: Orbax's own ``max_to_keep`` with ``best_fn``
    deletes the newest state when it is not among the best.
    """

    def __init__(self, run_dir: Path):
        policy = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(2),
                checkpoint_managers.BestN(get_metric_fn=lambda m: m["meta_loss"], reverse=True, n=1),
            ]
        )
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, enable_async_checkpointing=True)
        self._folder = run_dir.resolve() / "state"
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, state: TrainState, meta_loss: float) -> None:
        """Starts saving; returns once the arrays are copied off the device.

        Raises:
          UserError: if this or the previous save could not be written, e.g. because
            the disk is full. Earlier states stay as they are.
        """
        # A NaN would poison the ranking of the best.
        metrics = {"meta_loss": meta_loss if math.isfinite(meta_loss) else 1e30}
        try:
            self._manager.save(int(state.step), args=ocp.args.StandardSave(state), metrics=metrics)
        except Exception as error:
            raise self._cannot_write(error) from error

    def wait(self) -> None:
        """Blocks until what was saved is on disk. Raises UserError if it cannot be."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._cannot_write(error) from error

    def latest(self) -> int | None:
        """The newest complete outer step, or None."""
        return self._manager.latest_step()

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Restores a saved step into the structure, dtypes and shardings of ``like``.

        Raises:
          UserError: if the state is damaged or belongs to another recipe.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            return cast(TrainState, self._manager.restore(step, args=ocp.args.StandardRestore(abstract)))
        except Exception as error:
            raise UserError(f"cannot restore outer step {step} from {self._folder}: {_first_line(error)}") from error

    def close(self) -> None:
        self._manager.close()

    def _cannot_write(self, error: Any) -> UserError:
        return UserError(
            f"cannot save to {self._folder}: {_first_line(error)}; free some space or choose another folder, "
            "then continue with --resume"
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
