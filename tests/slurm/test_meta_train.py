"""meta_train.sbatch on a real SLURM: what becomes of a run at each thing that can happen to its job."""

import time

import pytest

from tests.slurm import cluster
from tests.slurm.runs import assert_finished, assert_gave_up, assert_goes_on, saved, wait_for_state

pytestmark = pytest.mark.slurm

RECIPE = ("digits-quick", "outer_steps=100", "save_every=10")
LONG = ("digits-quick", "outer_steps=1000", "save_every=10")


def test_runs_to_its_end(train):
    job, run, log = train(*RECIPE)
    assert_finished(job, run, log)
    assert cluster.lives(job) == 1


def test_requeued_by_hand(train):
    job, run, log = train(*RECIPE)
    wait_for_state(run)
    cluster.call("scontrol", "requeue", job)
    assert_goes_on(job, run, log, "SLURM is ending the job")


def test_time_limit(train):
    # SLURM counts in minutes and looks each half minute whom to signal: here after 10 to 40 seconds of each life.
    job, run, log = train(RECIPE[0], "outer_steps=450", "save_every=450", options=["--time=1", "--signal=B:USR1@20"])
    assert_finished(job, run, log)
    assert cluster.lives(job) > 1
    assert "requeued: it stopped early and saved" in log.read_text()


def test_crash_after_progress(train):
    job, run, log = train(*RECIPE)
    wait_for_state(run)
    cluster.call("scancel", "--signal=KILL", f"{job}.0")
    assert_goes_on(job, run, log, "requeued: it crashed after saving outer step")


def test_crash_without_progress(train):
    job, run, log = train(RECIPE[0], "outer_steps=1000", "save_every=1000")
    cluster.wait_until((run / "config.json").exists)
    cluster.call("scancel", "--signal=KILL", f"{job}.0")
    assert_gave_up(job, log, "not requeued: it crashed without saving a new state (outer step 0)")


def test_mistake_of_the_user(train):
    job, _, log = train(RECIPE[0], "sigm=1")
    assert_gave_up(job, log, "not requeued: the message above says what to change")


def test_canceled_stays_canceled(train):
    job, run, log = train(*LONG)
    wait_for_state(run)
    cluster.call("scancel", job)
    assert cluster.wait_for_end(job) == "CANCELLED"
    assert (run / "REQUEUE").exists()  # it did save, so that the user may go on
    time.sleep(8)  # a requeued job would be back: it waits 5 seconds
    assert cluster.state(job) == "CANCELLED" and cluster.lives(job) == 1
    assert "not requeued: SLURM is ending the job" in log.read_text()


def test_max_restarts(train):
    job, run, log = train(*LONG, MAX_RESTARTS=1)
    for life in (1, 2):
        cluster.wait_until(lambda life=life: cluster.lives(job) == life and cluster.state(job) == "RUNNING")
        before = saved(run)
        cluster.wait_until(lambda before=before: saved(run) != before)
        cluster.call("scancel", "--signal=USR1", f"{job}.0")
    assert cluster.lives(job) == 2
    assert_gave_up(job, log, "not requeued: it was requeued 1 times already (MAX_RESTARTS)")
