"""The life of a run: dispatch, log, save, look at the clock; go on where an earlier life ended."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from meta_train.outer import TrainState
from meta_train.parallel import processes
from meta_train.run import preempt
from meta_train.run.log import Log, Progress
from meta_train.run.preempt import Reason
from meta_train.run.state import StateStore, restore, set_damaged_aside


class Program(NamedTuple):
    """A recipe turned into functions: the first state, and a dispatch of outer steps."""

    init: Callable[[], TrainState]
    chunk: Any  # (state) -> (state, metrics), as jax.jit returns it


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
            state = restore(run_dir, saved, state)
        step = saved or 0
        # Apart from the first dispatch, whose time tells how long the next will take.
        chunk = program.chunk.lower(state).compile()
        desk = _Desk(run_dir, total, step)
        try:
            reason = watch.agree()
            while step < total and not reason:
                began = time.monotonic()
                state, metrics = chunk(state)
                metrics = jax.device_get(metrics)
                watch.dispatched(time.monotonic() - began)
                reason = watch.agree()
                if reason is Reason.TAKEN:
                    break
                desk.write(step + 1, metrics, watch.dispatch)
                step += dispatch
                if reason or step == total or step % save == 0:
                    began = time.monotonic()
                    store.save(state, _meta_loss(metrics))
                    watch.saved(time.monotonic() - began)
            watch.leave(Reason.NONE if step == total else reason)  # before closing, which may take its time
            if step < total:
                desk.say(f"stopped at outer step {step}; continue with: metaopt train --resume {run_dir}")
        finally:
            desk.close()
            store.close()
    return step == total


class _Desk:
    """What a run writes and prints: the first process does, and all learn where it cannot."""

    def __init__(self, run_dir: Path, total: int, step: int):
        self._run_dir, self._log, self._progress = run_dir, None, Progress(total, step)
        processes.on_first(lambda: self._open(step))

    def write(self, first_step: int, metrics: dict[str, np.ndarray], seconds: float) -> None:
        """A dispatch: metrics of shape (steps,), the first for ``first_step``."""
        processes.on_first(lambda: self._write(first_step, metrics, seconds))

    def say(self, text: str) -> None:
        if self._log:
            print(text, flush=True)

    def close(self) -> None:
        if self._log:
            self._log.close()

    def _open(self, step: int) -> None:
        self._log = Log(self._run_dir, step)
        if step:
            self.say(f"resumed {self._run_dir} at outer step {step}")

    def _write(self, first_step: int, metrics: dict[str, np.ndarray], seconds: float) -> None:
        assert self._log
        self._log.write(first_step, metrics)
        last = first_step + len(metrics["meta_loss"]) - 1
        self._progress.update(last, _meta_loss(metrics), float(np.sum(metrics["inner_steps"])) / seconds)
        if np.all(metrics["skipped"]):
            dead = max(float(np.max(v)) for k, v in metrics.items() if k.endswith("frac_dead"))
            self.say(
                f"warning: no usable meta-gradient up to outer step {last} ({dead:.0%} of the samples dead); theta is "
                f"unchanged. Lower settings.step_multiplier or sigma, see {self._run_dir / 'metrics.jsonl'}"
            )


def _meta_loss(metrics: dict[str, np.ndarray]) -> float:
    """The mean over a dispatch, of what is finite."""
    losses = metrics["meta_loss"][np.isfinite(metrics["meta_loss"])]
    return float(np.mean(losses)) if losses.size else float("nan")
