"""meta_train.sbatch on a real SLURM: what becomes of a run at each thing that can happen to its job."""

import re
import time
from pathlib import Path

import pytest

from tests.slurm import cluster

pytestmark = pytest.mark.slurm

TRAINER = Path(__file__).with_name("stand_in.py")  # in the place of Python, which would run meta_train.cli
RECIPE = ("digits-quick", "outer_steps=100", "save_every=10")
TWO_TASKS = ("--nodes=2", "--ntasks-per-node=1")


@pytest.fixture
def train(tmp_path):
    """Submits a run on two tasks; gives its job, its directory and its log."""
    jobs = []

    def submit(*recipe, options=(), **environment) -> tuple[str, Path, Path]:
        run, log = tmp_path / "run", tmp_path / "log"
        options = (*TWO_TASKS, f"--output={log}", *options)
        environment = {"METAOPT_PYTHON": TRAINER, **environment}
        jobs.append(cluster.submit("meta_train.sbatch", run, *(recipe or RECIPE), options=options, **environment))
        return jobs[-1], run, log

    yield submit
    for job in jobs:
        cluster.call("scancel", job)
        cluster.wait_for_end(job)


def saved(run: Path) -> list[int]:
    return sorted(int(path.name) for path in run.glob("state/*") if path.name.isdigit())


def wait_for_state(run: Path) -> None:
    cluster.wait_until(lambda: bool(saved(run)))


def assert_finished(job: str, run: Path, log: Path, outer_steps: int = 100) -> None:
    assert cluster.wait_for_end(job) == "COMPLETED", log.read_text()
    assert saved(run)[-1] == outer_steps and not (run / "REQUEUE").exists()
    assert log.read_text().count(f"{run} is finished") == 1


def assert_goes_on_once(job: str, run: Path, log: Path, reason: str) -> None:
    """Its second life began where the first had saved, and ended well."""
    cluster.wait_until(lambda: cluster.lives(job) == 2)
    resumed = saved(run)[-1:]
    assert_finished(job, run, log)
    assert cluster.lives(job) == 2
    assert reason in log.read_text()
    assert resumed == [int(step) for step in re.findall(rf"resumed {run} at outer step (\d+)", log.read_text())]


def assert_gave_up_in(lives: int, job: str, log: Path, reason: str) -> None:
    assert cluster.wait_for_end(job) == "FAILED"
    assert cluster.lives(job) == lives
    assert reason in log.read_text()


def test_runs_to_its_end(train):
    job, run, log = train()
    assert_finished(job, run, log)
    assert cluster.lives(job) == 1


def make_room() -> None:
    """Has a job of the partition urgent take all of the cluster for a moment."""
    options = ("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null")
    urgent = cluster.call("sbatch", "--parsable", *options, "--wrap", "true")
    assert cluster.wait_for_end(urgent) == "COMPLETED"


def test_preempted(train):
    job, run, log = train()
    wait_for_state(run)
    make_room()
    assert_goes_on_once(job, run, log, "requeued: it stopped early and saved")


def test_preempted_before_it_could_listen(train, tmp_path):
    slow = tmp_path / "slow"
    slow.write_text(f'#!/bin/sh\n[ "$SLURM_RESTART_COUNT" ] || sleep 60\nexec {TRAINER} "$@"\n')
    slow.chmod(0o755)
    job, run, log = train(METAOPT_PYTHON=slow)
    cluster.wait_until(lambda: cluster.call("squeue", "-h", "-s", "-j", job) != "")
    time.sleep(1)  # the tasks begin
    make_room()
    assert_goes_on_once(job, run, log, "requeued: it was preempted")


def test_requeued_by_hand(train):
    job, run, log = train()
    wait_for_state(run)
    cluster.call("scontrol", "requeue", job)
    assert_goes_on_once(job, run, log, "SLURM is ending the job")


def test_time_limit(train):
    # SLURM counts in minutes and looks each half minute whom to signal: here after 10 to 40 seconds of each life.
    job, run, log = train(RECIPE[0], "outer_steps=450", "save_every=450", options=["--time=1", "--signal=B:USR1@20"])
    assert_finished(job, run, log, 450)
    assert cluster.lives(job) > 1
    assert "requeued: it stopped early and saved" in log.read_text()


def test_crash_after_progress(train):
    job, run, log = train()
    wait_for_state(run)
    cluster.call("scancel", "--signal=KILL", f"{job}.0")
    assert_goes_on_once(job, run, log, "requeued: it crashed, but had got further: to outer step")


def test_crash_without_progress(train):
    job, run, log = train(RECIPE[0], "outer_steps=1000", "save_every=1000")
    cluster.wait_until((run / "config.json").exists)
    cluster.call("scancel", "--signal=KILL", f"{job}.0")
    assert_gave_up_in(1, job, log, "not requeued: it crashed without getting further (outer step 0)")


def test_mistake_of_the_user(train):
    job, _, log = train(RECIPE[0], "sigm=1")
    assert_gave_up_in(1, job, log, "not requeued: the message above says what to change")


def test_cancelled_stays_cancelled(train):
    job, run, log = train(RECIPE[0], "outer_steps=1000", "save_every=10")
    wait_for_state(run)
    cluster.call("scancel", job)
    assert cluster.wait_for_end(job) == "CANCELLED"
    assert (run / "REQUEUE").exists()  # it did save, so that the user may go on
    time.sleep(8)  # a requeued job would be back: it waits 5 seconds
    assert cluster.state(job) == "CANCELLED" and cluster.lives(job) == 1
    assert "not requeued: SLURM is ending the job" in log.read_text()


def test_max_restarts(train):
    job, run, log = train(RECIPE[0], "outer_steps=1000", "save_every=10", MAX_RESTARTS=1)
    for life in (1, 2):
        cluster.wait_until(lambda life=life: cluster.lives(job) == life and cluster.state(job) == "RUNNING")
        before = saved(run)
        cluster.wait_until(lambda before=before: saved(run) != before)
        cluster.call("scancel", "--signal=USR1", f"{job}.0")
    assert_gave_up_in(2, job, log, "not requeued: it has gone on 1 times (MAX_RESTARTS)")
