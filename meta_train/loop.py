"""The life of a run: dispatch, log, save, look at the clock; go on where an earlier life ended."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from meta_train import preempt, processes
from meta_train.log import Log, Progress
from meta_train.outer import TrainState
from meta_train.preempt import Reason
from meta_train.state import StateStore, set_damaged_aside


class Program(NamedTuple):
    """A recipe turned into functions: the first state, and a dispatch of outer steps."""

    init: Callable[[], TrainState]
    chunk: Callable[[TrainState], tuple[TrainState, Any]]  # (state) -> (state, metrics)


class Schedule(NamedTuple):
    """Outer steps: of the run, of a dispatch, between two saves."""

    total: int
    dispatch: int
    save: int


def run(program: Program, schedule: Schedule, run_dir: Path) -> bool:
    """Runs to the end, or until a signal, the time limit of the job or another process ends it.

    Every process of a step calls this; the first writes and prints. Between two dispatches
    they agree whether to go on, so that all of them save the same outer step.

    Returns:
      Whether the end is reached. If not, the state is saved.

    Raises:
      UserError: if saving fails or is planned more seldom than the job has time for, if no
        saved state is whole, or if another process has taken the run.
    """
    total, dispatch, save = schedule
    with preempt.signals() as received:
        watch = preempt.Watch(run_dir, received, min(save, total) / dispatch)
        saved = processes.on_first(lambda: set_damaged_aside(run_dir))
        state, store = program.init(), StateStore(run_dir)
        if saved is not None:
            state = store.restore(saved, state)
        step = saved or 0
        desk = _Desk(run_dir, total, step) if processes.is_first() else None
        try:
            reason = watch.agree()
            while step < total and not reason:
                began = time.monotonic()
                state, metrics = program.chunk(state)
                metrics = jax.device_get(metrics)
                watch.dispatched(time.monotonic() - began)
                reason = watch.agree()
                if reason is Reason.TAKEN:
                    break
                if desk:
                    desk.write(step + 1, metrics, watch.dispatch)
                step += dispatch
                if reason or step == total or step % save == 0:
                    began = time.monotonic()
                    store.save(state, _meta_loss(metrics))
                    watch.saved(time.monotonic() - began)
        finally:
            if desk:
                desk.close()
            store.close()
        watch.leave(Reason.NONE if step == total else reason)
    if desk and step < total:
        print(f"stopped at outer step {step}; continue with: metaopt train --resume {run_dir}", flush=True)
    return step == total


class _Desk:
    """What the first process writes and prints."""

    def __init__(self, run_dir: Path, total: int, step: int):
        self._run_dir, self._log, self._progress = run_dir, Log(run_dir, step), Progress(total, step)
        if step:
            print(f"resumed {run_dir} at outer step {step}", flush=True)

    def write(self, first_step: int, metrics: dict[str, np.ndarray], seconds: float) -> None:
        """A dispatch: metrics of shape (steps,), the first for ``first_step``."""
        self._log.write(first_step, metrics)
        last = first_step + len(metrics["meta_loss"]) - 1
        self._progress.update(last, _meta_loss(metrics), float(np.sum(metrics["inner_steps"])) / seconds)
        if np.all(metrics["skipped"]):
            dead = max(float(np.max(v)) for k, v in metrics.items() if k.endswith("frac_dead"))
            print(
                f"warning: no usable meta-gradient up to outer step {last} ({dead:.0%} of the samples dead); theta is "
                f"unchanged. Lower settings.step_multiplier or sigma, see {self._run_dir / 'metrics.jsonl'}"
            )

    def close(self) -> None:
        self._log.close()


def _meta_loss(metrics: dict[str, np.ndarray]) -> float:
    """The mean over a dispatch, of what is finite."""
    losses = metrics["meta_loss"][np.isfinite(metrics["meta_loss"])]
    return float(np.mean(losses)) if losses.size else float("nan")
