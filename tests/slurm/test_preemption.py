"""Preemption on a real SLURM. These tests share nodes: one at a time, as pytest does with a file."""

import sys
import time

import pytest

from tests.slurm import cluster
from tests.slurm.runs import (
    STAND_IN,
    assert_finished,
    assert_goes_on,
    assert_same_theta,
    make_room,
    metrics,
    wait_for_state,
)

pytestmark = pytest.mark.slurm

RECIPE = ("digits-quick", "outer_steps=100", "save_every=10")
REAL = ("quadratics", "outer_steps=600", "save_every=50")
TRAINER = {"METAOPT_PYTHON": sys.executable}


def test_preempted(train):
    job, run, log = train(*RECIPE, nodes=cluster.preemptible())
    wait_for_state(run)
    urgent = make_room()
    assert_goes_on(job, run, log, "requeued: it was preempted")
    assert cluster.state(urgent) == "COMPLETED"


def test_preempted_before_it_could_listen(train, tmp_path):
    slow = tmp_path / "slow"
    slow.write_text(f'#!/bin/sh\n[ "$SLURM_RESTART_COUNT" ] || sleep 60\nexec {STAND_IN} "$@"\n')
    slow.chmod(0o755)
    job, run, log = train(*RECIPE, nodes=cluster.preemptible(), METAOPT_PYTHON=slow)
    cluster.wait_until(lambda: cluster.call("squeue", "-h", "-s", "-j", job) != "")
    time.sleep(1)  # the tasks begin
    make_room()
    assert_goes_on(job, run, log, "requeued: it was preempted")


def test_the_run_is_the_one_it_would_be(train):
    whole, whole_run, whole_log = train(*REAL, name="whole", **TRAINER)
    job, run, log = train(*REAL, nodes=cluster.preemptible(), **TRAINER)
    wait_for_state(run)
    make_room()
    assert_goes_on(job, run, log, "requeued: it was preempted")
    assert_finished(whole, whole_run, whole_log)
    assert cluster.lives(whole) == 1
    assert metrics(run) == metrics(whole_run)
    assert_same_theta(run, whole_run)
