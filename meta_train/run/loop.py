"""The training loop of a run: dispatch outer steps, log, checkpoint, stop before the time limit."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from meta_train.parallel import processes
from meta_train.program import Compiled
from meta_train.run import preempt, progress
from meta_train.run.log import Log
from meta_train.run.preempt import Reason
from meta_train.run.state import StateStore, restore, set_damaged_aside
from metaopt.core import Theta

Metrics = dict[str, np.ndarray]  # metrics of a dispatch, name -> (steps,) values; "step" is the outer step
OnMetrics = Callable[[Metrics], Any]  # called after every dispatch; a true value ends the run


class Schedule(NamedTuple):
    """Numbers of outer steps."""

    total: int  # outer steps of the run
    dispatch: int  # outer steps of a dispatch
    save: int  # outer steps between two saves


def run(
    compiled: Compiled, schedule: Schedule, run_dir: Path, on_metrics: OnMetrics | None = None
) -> tuple[Theta, bool]:
    """Trains until the last outer step, or until a signal, the time limit of the job or a callback ends the run.

    Every process of a SLURM step calls this; the first writes and prints. Between two dispatches
    the processes agree whether to continue, so that all of them save the same outer step.

    Args:
      compiled: compiled outer loop.
      schedule: numbers of outer steps.
      run_dir: run directory, which may hold saved states to continue from.
      on_metrics: callback that gets the metrics of every dispatch; a true result ends the run.

    Returns:
      Theta on the host, and whether the last outer step is reached. If not, the state is saved.

    Raises:
      UserError: if saving fails, if the time between two saves is longer than the time limit of
        the job, if no saved state is intact, or if another process has taken the run directory.
    """
    total, dispatch, save = schedule
    with preempt.signals() as received, preempt.Watch(run_dir, received, min(save, total) / dispatch) as watch:
        saved = processes.on_first(set_damaged_aside, run_dir)
        state, store = compiled.init(), StateStore(run_dir)
        if saved is not None:
            state = restore(run_dir, saved, state)
        step = saved or 0
        writer = _RunWriter(run_dir, total, step)
        try:
            # Compiled before the first dispatch, whose duration predicts that of the next.
            run_dispatch = compiled.dispatch.lower(state).compile()
            writer.open()
            reason = watch.agree()
            while step < total and not reason:
                began = time.monotonic()
                state, metrics = run_dispatch(state)
                metrics = jax.device_get(metrics)
                watch.dispatched(time.monotonic() - began)
                if on_metrics and on_metrics(_numbered(metrics, step)):
                    received.append(Reason.INTERRUPT)
                reason = watch.agree()
                if reason is Reason.TAKEN:
                    break
                writer.write(step + 1, metrics, watch.dispatch)
                step += dispatch
                if reason or step == total or step % save == 0:
                    began = time.monotonic()
                    store.save(state, _meta_loss(metrics))
                    watch.saved(time.monotonic() - began)
            watch.leave(Reason.NONE if step == total else reason)  # before closing, which may take long
            if step < total:
                writer.end_with(f"stopped at outer step {step}; continue with: metaopt train --resume {run_dir}")
        finally:
            writer.close()
            store.close()
    return jax.device_get(state.theta), step == total


def run_in_memory(
    compiled: Compiled, schedule: Schedule, on_metrics: OnMetrics | None = None
) -> tuple[Theta, bool, Metrics]:
    """Trains without a run directory, until the last outer step or until the callback ends the run.

    Args:
      compiled: compiled outer loop.
      schedule: numbers of outer steps; nothing is saved.
      on_metrics: callback that gets the metrics of every dispatch; a true result ends the run.

    Returns:
      Theta on the host, whether the last outer step is reached, and the metrics of all outer steps.
    """
    state, collected, step = compiled.init(), [], 0
    while step < schedule.total:
        state, metrics = compiled.dispatch(state)
        collected.append(_numbered(jax.device_get(metrics), step))
        step += schedule.dispatch
        if on_metrics and on_metrics(collected[-1]):
            break
    metrics = jax.tree.map(lambda *arrays: np.concatenate(arrays), *collected)
    return jax.device_get(state.theta), step == schedule.total, metrics


def _numbered(metrics: Metrics, step: int) -> Metrics:
    """The metrics of a dispatch that began after ``step`` outer steps, with their "step" added."""
    return {"step": step + 1 + np.arange(len(metrics["meta_loss"]))} | metrics


class _RunWriter:
    """Process 0 writes metrics and prints; its errors are raised on every process."""

    def __init__(self, run_dir: Path, total: int, step: int):
        self._run_dir, self._step = run_dir, step
        self._log: Log | None = None
        self._progress: progress.Bar | progress.Lines | None = None
        processes.on_first(self._begin, total)

    def open(self) -> None:
        """Begins to write, once the run is compiled."""
        processes.on_first(self._open)

    def write(self, first_step: int, metrics: dict[str, np.ndarray], seconds: float) -> None:
        """Writes the metrics of a dispatch, see ``Log.write``, and shows the progress."""
        processes.on_first(self._write, first_step, metrics, seconds)

    def print_line(self, text: str) -> None:
        if self._log:
            tqdm.write(text)
            sys.stdout.flush()

    def end_with(self, text: str) -> None:
        """Prints a line below the progress, which is over."""
        if self._progress:
            self._progress.close()
        self.print_line(text)

    def close(self) -> None:
        if self._progress:
            self._progress.close()
        if self._log:
            self._log.close()

    def _begin(self, total: int) -> None:
        self._progress = progress.begin(total, self._step)

    def _open(self) -> None:
        self._log = Log(self._run_dir, self._step)
        if self._step:
            self.print_line(f"resumed {self._run_dir} at outer step {self._step}")

    def _write(self, first_step: int, metrics: dict[str, np.ndarray], seconds: float) -> None:
        assert self._log and self._progress
        self._log.write(first_step, metrics, seconds)
        last = first_step + len(metrics["meta_loss"]) - 1
        self._progress.update(last, _meta_loss(metrics), float(np.sum(metrics["inner_steps"])) / seconds)
        if np.all(metrics["skipped"]):
            dead = max(float(np.max(v)) for k, v in metrics.items() if k.endswith("frac_dead"))
            self.print_line(
                f"warning: no usable meta-gradient up to outer step {last} ({dead:.0%} of the samples dead); theta is "
                "unchanged. Lower sigma, or the initial step size of the family, see "
                f"{self._run_dir / 'metrics.jsonl'}"
            )


def _meta_loss(metrics: dict[str, np.ndarray]) -> float:
    """The mean of the finite meta-losses of a dispatch; NaN if there are none."""
    losses = metrics["meta_loss"][np.isfinite(metrics["meta_loss"])]
    return float(np.mean(losses)) if losses.size else float("nan")
