"""The trainer itself in meta_train.sbatch, in two processes; see test_preemption.py too."""

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.slurm import cluster
from tests.slurm.runs import assert_goes_on, metrics, saved, wait_for_state

pytestmark = pytest.mark.slurm

RECIPE = ("quadratics", "outer_steps=600", "save_every=50")
TRAINER = {"METAOPT_PYTHON": sys.executable}


def kill_task(job: str, task: int) -> None:
    wanted = {f"SLURM_JOB_ID={job}", f"SLURM_PROCID={task}", "SLURM_STEP_ID=0"}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes().decode(errors="replace").split("\0")
            if wanted <= set(environment) and "meta_train.cli" in (process / "cmdline").read_text():
                os.kill(int(process.name), signal.SIGKILL)
        except OSError:  # it has ended
            continue


def test_a_lost_process(train):
    job, run, log = train(*RECIPE, **TRAINER)
    wait_for_state(run)
    kill_task(job, 1)
    assert_goes_on(job, run, log, "requeued: it crashed, but had got further")
    assert [line["step"] for line in metrics(run)] == list(range(1, 601))


def test_time_limit(train):
    """The trainer itself reads from SLURM when its time is up: the signal is one that says nothing here."""
    limit = ["--time=1", "--signal=B:CONT@1"]
    job, run, log = train("quadratics", "outer_steps=20000", "save_every=100", options=limit, **TRAINER)
    cluster.wait_until(lambda: cluster.lives(job) == 2, seconds=100)
    assert "stopped at outer step" in log.read_text()
    assert "requeued: it stopped early and saved" in log.read_text()
    assert saved(run)
    cluster.call("scancel", job)
    assert cluster.wait_for_end(job) == "CANCELLED"
