"""Stopping early without losing work: signals, the time limit of a job, ownership of a run directory.

A signal only sets a flag. Between two dispatches the processes agree to stop, save the same
outer step, leave a marker for the batch script and exit together with the same exit code.
"""

import contextlib
import enum
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from types import FrameType

import jax

from meta_train.parallel import processes
from metaopt.errors import UserError

EXIT_CODE = 85  # exit code of a run that stopped early and can be resumed
MARKER = "REQUEUE"  # file in a run directory that asks the batch script to put the job back into the queue
OWNER = "owner"  # file in a run directory that names the process that last took it
SAFETY_MARGIN = 10.0  # seconds left before the time limit when a run has stopped because of it
GRACE_PERIOD = 5.0  # seconds to wait for writes of the previous process if it may still be alive


class Reason(enum.IntEnum):
    """Why a run stops early; if there are several reasons, the largest counts."""

    NONE = 0
    INTERRUPT = 1  # SIGINT, or a callback ended the run
    REQUEUE = 2  # a signal of the batch system, or the time limit is near: the job should be requeued
    SAVE_INTERVAL_TOO_LONG = 3  # the time between two saves is longer than the time limit of the job
    TAKEN = 4  # another process has taken the run directory: this one may not write to it any more


@contextlib.contextmanager
def signals() -> Iterator[list[Reason]]:
    """Yields a list that receives a Reason for every SIGTERM, SIGUSR1 or SIGINT.

    A second SIGINT ends the process. SLURM sends the other signals more than once, also while
    the state is being saved.
    """
    received: list[Reason] = []
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}

    def handler(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(Reason.INTERRUPT if number == signal.SIGINT else Reason.REQUEUE)
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)

    for number in previous:
        signal.signal(number, handler)
    try:
        yield received
    finally:
        for number, previous_handler in previous.items():
            signal.signal(number, previous_handler)


class Watch:
    """Decides between two dispatches whether a run has to stop.

    A run directory belongs to the process that took it last. If a node fails, SLURM restarts
    the job on other nodes, although the processes on the failed node may still be alive. They
    notice here that another process has taken the run directory, and exit without writing to it.

    Attributes:
      dispatch: duration of the last dispatch in seconds.
    """

    def __init__(self, run_dir: Path, received: list[Reason], dispatches_per_save: float):
        self._run_dir, self._received, self._dispatches_per_save = run_dir, received, dispatches_per_save
        self._mark = processes.on_first(_take, run_dir)
        self._times = processes.on_first(job_times)
        self.dispatch = 0.0
        self._save = 0.0  # seconds of the last save
        self._turn = 0.0  # seconds from one agreement to the next but for saving: a dispatch, its metrics, the others
        self._agreed: float | None = None  # when the processes last agreed, later by what was saved since
        self._fastest = float("inf")  # shortest dispatch so far: a delayed one does not predict the next

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Releases the run directory after an error; of several processes another one may still be writing."""
        if kind and jax.process_count() == 1:
            _release(self._run_dir, self._mark)

    def agree(self) -> Reason:
        """Why all processes stop now, or NONE; all processes have to call this."""
        now = time.monotonic()
        self._turn = 0.0 if self._agreed is None else now - self._agreed
        self._agreed = now
        return Reason(processes.largest(max([self._own_reason(), *self._received])))

    def dispatched(self, seconds: float) -> None:
        """Records the duration of a dispatch."""
        self._fastest = min(self._fastest, seconds)
        self.dispatch = seconds

    def saved(self, seconds: float) -> None:
        """Records the duration of a save."""
        self._save = seconds
        if self._agreed is not None:
            self._agreed += seconds

    def leave(self, reason: Reason) -> None:
        """Releases the run directory, and leaves the marker in it if the job should be requeued.

        Raises:
          UserError: if the user has to act before the run can be resumed.
        """
        if reason is Reason.TAKEN:
            raise UserError(
                f"another process has taken {self._run_dir} ({OWNER} names it): this one stops and writes nothing more"
            )
        processes.on_first(_release, self._run_dir, self._mark)
        if reason is Reason.SAVE_INTERVAL_TOO_LONG:
            raise UserError(
                f"the time between two saves (save_every) is about {self._interval():,.0f} s here, longer than the "
                f"time limit of the job ({self._limit():,.0f} s): ask for more --time, or lower save_every in "
                f"{self._run_dir / 'config.json'}; the outer steps so far are saved"
            )
        if reason is Reason.REQUEUE:
            processes.on_first((self._run_dir / MARKER).touch)

    def _own_reason(self) -> Reason:
        """Why this process wants to stop, signals aside; only the first process checks."""
        if not processes.is_first():
            return Reason.NONE
        if _owner(self._run_dir) != self._mark:
            return Reason.TAKEN
        if float("inf") > self._interval() > self._limit():
            return Reason.SAVE_INTERVAL_TOO_LONG
        # The remaining time may be too short for another turn and a save.
        if self._times and time.time() + 2 * (self._turn + self._save) + SAFETY_MARGIN > self._times[1]:
            return Reason.REQUEUE
        return Reason.NONE

    def _interval(self) -> float:
        """Seconds between two saves."""
        return self._fastest * self._dispatches_per_save

    def _limit(self) -> float:
        """Time limit of the job in seconds."""
        return self._times[1] - self._times[0] if self._times else float("inf")


def job_times(environ: Mapping[str, str] = os.environ) -> tuple[float, float] | None:
    """Start time and end time of this SLURM job, in seconds since the epoch.

    The start is that of the job, because its time limit includes restoring and compiling.

    Returns:
      (start, end), or None outside a job or without a time limit.
    """
    if "SLURM_JOB_START_TIME" in environ and "SLURM_JOB_END_TIME" in environ:
        return float(environ["SLURM_JOB_START_TIME"]), float(environ["SLURM_JOB_END_TIME"])
    if "SLURM_JOB_ID" not in environ or shutil.which("squeue") is None:
        return None
    job = environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in environ:  # needed because the last element has the job id of the whole array
        job = f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    command = ["squeue", "--noheader", "--job", job, "--format", "%S %e"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        start, end = (datetime.fromisoformat(word).timestamp() for word in answer.split())
    except (subprocess.SubprocessError, OSError, ValueError):  # without a time limit the end is not a date
        return None
    return start, end


def _take(run_dir: Path) -> str:
    """Takes a run directory, so that its previous owner finds another mark than its own; returns the mark."""
    mark = f"{socket.gethostname()} pid {os.getpid()} {uuid.uuid4().hex[:8]}\n"
    try:
        closed_cleanly = _owner(run_dir) is None
        (run_dir / MARKER).unlink(missing_ok=True)
        (run_dir / OWNER).write_text(mark)
    except OSError as error:
        raise UserError(f"cannot write to run directory {run_dir}: {error.strerror}") from error
    if not closed_cleanly:
        print(
            f"{run_dir} was not closed cleanly by its previous process: waiting {GRACE_PERIOD:.0f} s, in which it may "
            "finish writing",
            flush=True,
        )
        time.sleep(GRACE_PERIOD)
    return mark


def _release(run_dir: Path, mark: str) -> None:
    if _owner(run_dir) == mark:  # else another process took it while the last state was being saved
        (run_dir / OWNER).unlink()


def is_taken(run_dir: Path) -> bool:
    """Whether a process may be at work in a run directory: one of this machine that lives, or any of another."""
    mark = _owner(run_dir)
    if mark is None:
        return False
    host, _, pid, *_ = [*mark.split(), "", "", ""]
    if host != socket.gethostname() or not pid.isdigit():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, and is somebody else's
        pass
    return True


def _owner(run_dir: Path) -> str | None:
    """The mark of the process that has the run directory; None if the last one released it."""
    try:
        return (run_dir / OWNER).read_text()
    except FileNotFoundError:
        return None
