"""Stopping early in a way that loses nothing: signals, the time limit of a job, and whose a run is.

A signal only sets a flag. Between two dispatches the processes agree, save the same outer
step, leave a marker for the batch script and go together with one exit code.
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

from meta_train import processes
from metaopt.errors import UserError

EXIT_CODE = 85  # of a run that stopped early and can go on
MARKER = "REQUEUE"  # in a run directory: the batch script puts the job back into the queue
OWNER = "owner"  # in a run directory: the process that last took it
SLACK = 10.0  # seconds that are left when a run has stopped for its time limit
GRACE = 5.0  # seconds for an earlier life, where it may not have ended, to write what it is writing


class Reason(enum.IntEnum):
    """Why a run stops early; of several, the largest counts."""

    NONE = 0
    INTERRUPT = 1  # by hand
    REQUEUE = 2  # a signal of the batch system, or the job's time is up: it is wanted back in the queue
    SELDOM = 3  # states are saved more seldom than the job has time for
    TAKEN = 4  # another process has this run now: nothing may be written


@contextlib.contextmanager
def signals() -> Iterator[list[Reason]]:
    """Yields a list that receives a Reason for every SIGTERM, SIGUSR1 or SIGINT.

    A second SIGINT ends the process. The others come more than once from SLURM, while
    the state is being saved.
    """
    received: list[Reason] = []
    usual = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}

    def handler(number, frame):
        del frame
        received.append(Reason.INTERRUPT if number == signal.SIGINT else Reason.REQUEUE)
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)

    for number in usual:
        signal.signal(number, handler)
    try:
        yield received
    finally:
        for number, previous in usual.items():
            signal.signal(number, previous)


class Watch:
    """Tells a run between two dispatches whether to go on.

    A run directory belongs to the process that came last. Where SLURM gives up a node it
    starts the job elsewhere, but what ran on that node may still live: it finds here that it
    has been replaced, and leaves without writing more.
    """

    def __init__(self, run_dir: Path, received: list[Reason], dispatches_per_save: float):
        self._run_dir, self._received, self._dispatches_per_save = run_dir, received, dispatches_per_save
        self._mark = processes.on_first(lambda: _claim(run_dir))
        self._times = processes.on_first(job_times)
        self._num_dispatches = 0
        self.dispatch, self.save = 0.0, 0.0  # seconds that the last one took

    def agree(self) -> Reason:
        """Why all processes stop now; all of them have to call this."""
        return Reason(processes.largest(max([self._seen(), *self._received])))

    def dispatched(self, seconds: float) -> None:
        self._num_dispatches += 1
        self.dispatch = seconds

    def saved(self, seconds: float) -> None:
        self.save = seconds

    def leave(self, reason: Reason) -> None:
        """Gives the run directory back, with the marker where the job is wanted back in the queue.

        Raises:
          UserError: where it is the user who is wanted.
        """
        if reason is Reason.TAKEN:
            raise UserError(
                f"another process has taken {self._run_dir} ({OWNER} names it): this one stops and writes nothing more"
            )
        processes.on_first((self._run_dir / OWNER).unlink)
        if reason is Reason.SELDOM:
            raise UserError(
                f"what lies between two saves (save_every) takes about {self._interval():,.0f} s here, longer than the "
                f"whole job ({self._limit():,.0f} s): ask for more --time, or lower save_every in "
                f"{self._run_dir / 'config.json'}; what was done is saved"
            )
        if reason is Reason.REQUEUE:
            processes.on_first(lambda: (self._run_dir / MARKER).touch())

    def _seen(self) -> Reason:
        if not processes.is_first():
            return Reason.NONE
        if (self._run_dir / OWNER).read_text() != self._mark:
            return Reason.TAKEN
        # The first dispatch compiles: it says nothing about the next.
        if self._num_dispatches > 1 and self._interval() > self._limit():
            return Reason.SELDOM
        # Another dispatch and a save might not fit.
        if self._times and time.time() + 2 * (self.dispatch + self.save) + SLACK > self._times[1]:
            return Reason.REQUEUE
        return Reason.NONE

    def _interval(self) -> float:
        return self.dispatch * self._dispatches_per_save

    def _limit(self) -> float:
        return self._times[1] - self._times[0] if self._times else float("inf")


def job_times(environ: Mapping[str, str] = os.environ) -> tuple[float, float] | None:
    """When this SLURM job began and when its time is up, in seconds since the epoch.

    Counted from the start of the job: restoring and compiling take of its time too.
    None outside a job, or without a limit.
    """
    if "SLURM_JOB_START_TIME" in environ and "SLURM_JOB_END_TIME" in environ:
        return float(environ["SLURM_JOB_START_TIME"]), float(environ["SLURM_JOB_END_TIME"])
    if "SLURM_JOB_ID" not in environ or shutil.which("squeue") is None:
        return None
    command = ["squeue", "--noheader", "--job", environ["SLURM_JOB_ID"], "--format", "%S %e"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        start, end = (datetime.fromisoformat(word).timestamp() for word in answer.split())
    except (subprocess.SubprocessError, OSError, ValueError):  # without a limit there is no time to read
        return None
    return start, end


def _claim(run_dir: Path) -> str:
    """Takes a run: whoever had it finds another mark than its own."""
    (run_dir / MARKER).unlink(missing_ok=True)
    left_in_order = not (run_dir / OWNER).exists()
    mark = f"{socket.gethostname()} pid {os.getpid()} {uuid.uuid4().hex[:8]}\n"
    (run_dir / OWNER).write_text(mark)
    if not left_in_order:
        print(f"{run_dir} was not left in order: waiting {GRACE:.0f} s, something may still be writing", flush=True)
        time.sleep(GRACE)
    return mark
