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

from meta_train.parallel import processes
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
        self.dispatch, self.save = 0.0, 0.0  # seconds that the last one took
        self._fastest = float("inf")  # dispatch so far: one that was held up says nothing of the next

    def agree(self) -> Reason:
        """Why all processes stop now; all of them have to call this."""
        return Reason(processes.largest(max([self._seen(), *self._received])))

    def dispatched(self, seconds: float) -> None:
        self._fastest = min(self._fastest, seconds)
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
        processes.on_first(lambda: _give_back(self._run_dir, self._mark))
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
        if _owner(self._run_dir) != self._mark:
            return Reason.TAKEN
        if float("inf") > self._interval() > self._limit():
            return Reason.SELDOM
        # Another dispatch and a save might not fit.
        if self._times and time.time() + 2 * (self.dispatch + self.save) + SLACK > self._times[1]:
            return Reason.REQUEUE
        return Reason.NONE

    def _interval(self) -> float:
        return self._fastest * self._dispatches_per_save

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
    job = environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in environ:  # the last element's own number is that of the whole array too
        job = f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    command = ["squeue", "--noheader", "--job", job, "--format", "%S %e"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        start, end = (datetime.fromisoformat(word).timestamp() for word in answer.split())
    except (subprocess.SubprocessError, OSError, ValueError):  # without a limit there is no time to read
        return None
    return start, end


def _claim(run_dir: Path) -> str:
    """Takes a run: whoever had it finds another mark than its own."""
    mark = f"{socket.gethostname()} pid {os.getpid()} {uuid.uuid4().hex[:8]}\n"
    try:
        left_in_order = _owner(run_dir) is None
        (run_dir / MARKER).unlink(missing_ok=True)
        (run_dir / OWNER).write_text(mark)
    except OSError as error:
        raise UserError(f"cannot write to run directory {run_dir}: {error.strerror}") from error
    if not left_in_order:
        print(f"{run_dir} was not left in order: waiting {GRACE:.0f} s, something may still be writing", flush=True)
        time.sleep(GRACE)
    return mark


def _give_back(run_dir: Path, mark: str) -> None:
    if _owner(run_dir) == mark:  # else it was taken while the last state was being saved
        (run_dir / OWNER).unlink()


def _owner(run_dir: Path) -> str | None:
    """The mark of whoever has the run; None where it was left in order."""
    try:
        return (run_dir / OWNER).read_text()
    except FileNotFoundError:
        return None
