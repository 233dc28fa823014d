"""Real meta-training on a real SLURM: whatever ends its job, theta comes out the same to the last bit."""

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm import cluster
from tests.slurm.runs import assert_finished, assert_same_theta, begin, wait_for_state

pytestmark = pytest.mark.slurm

CLUSTER = Path(os.environ.get("SLURM_CONF", "")).parent  # of slurm/local_cluster.sh
STEPS = 2000
RECIPE = (
    "quadratics",
    f"outer_steps={STEPS}",
    "warmup=2",
    "num_samples=4",
    "shortest=20",
    "longest=40",
    "steps_per_dispatch=5",
    "save_every=100",
)
TRAINER = {"METAOPT_PYTHON": sys.executable, "PYTHONPATH": cluster.SCRIPTS.parent}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing interrupts."""
    job, run, log = begin(tmp_path_factory.mktemp("whole"), *RECIPE, **TRAINER)
    assert_finished(job, run, log)
    assert cluster.lives(job) == 1
    assert "process 0 of 2" in log.read_text() and "process 1 of 2" in log.read_text()
    return run


@pytest.fixture
def live(train):
    """Submits the run and waits until it has saved something."""

    def submit(**how) -> tuple[str, Path, Path]:
        job, run, log = train(*RECIPE, **how, **TRAINER)
        wait_for_state(run)
        return job, run, log

    return submit


def assert_same(job: str, run: Path, log: Path, whole, reason: str) -> None:
    """It was interrupted, went on from what was saved, and came to the same end."""
    assert_finished(job, run, log)
    assert cluster.lives(job) > 1 and reason in log.read_text()
    resumed = [int(step) for step in re.findall(r"resumed .* at outer step (\d+)", log.read_text())]
    assert resumed and all(0 < step < STEPS for step in resumed)
    assert_same_theta(run, whole)


def test_requeued_by_hand(live, whole):
    job, run, log = live()
    cluster.call("scontrol", "requeue", job)
    assert_same(job, run, log, whole, "SLURM is ending the job")


def test_a_task_is_killed(live, whole):
    job, run, log = live()
    victim = next(pid for pid in tasks_of(job) if environ_of(pid)["SLURM_PROCID"] == "1")
    os.kill(victim, signal.SIGKILL)
    assert_same(job, run, log, whole, "it crashed after saving outer step")


def test_time_limit(live, whole):
    """The trainer knows when its job began and how long it may last; after a turn of 17 s it expects another."""
    job, run, log = live(options=["--time=1", "--signal=B:CONT@1"])  # a signal that says nothing here
    end = time.monotonic() + 17
    hold(tasks_of(job), lambda: time.monotonic() > end)
    assert_same(job, run, log, whole, "requeued: it stopped early and saved")


def test_the_daemon_of_a_node_stops(live, whole):
    """SLURM gives the node up and starts the job on another, while the tasks on the first still live."""
    job, run, log = live(nodes=["--nodes=1"], tasks_per_node=2)
    node = cluster.call("squeue", "-h", "-j", job, "-o", "%N")
    orphans, owner = tasks_of(job), (run / "owner").read_text()
    os.kill(int((CLUSTER / f"slurmd.{node}.pid").read_text()), signal.SIGKILL)
    try:
        hold(orphans, lambda: (run / "owner").read_text() != owner)
        assert_same(job, run, log, whole, "was not closed cleanly")
        cluster.wait_until(lambda: not any(map(is_alive, orphans)))
    finally:
        cluster.call("slurmd", "-N", node, "-f", CLUSTER / "slurm.conf", PATH=f"{os.environ['PATH']}:/usr/sbin")
        cluster.wait_until(lambda: "down" not in cluster.call("sinfo", "-h", "-n", node, "-p", "batch", "-o", "%T"))


def hold(pids: list[int], until: Callable[[], bool]) -> None:
    """Stops processes until a condition holds; lets them run for moments, so that they do not lose each other."""
    while not until():
        signal_all(pids, signal.SIGSTOP)
        end = time.monotonic() + 21
        while not until() and time.monotonic() < end:
            time.sleep(0.1)
        signal_all(pids, signal.SIGCONT)
        time.sleep(0.3)


def signal_all(pids: list[int], number: int) -> None:
    for pid in filter(is_alive, pids):
        os.kill(pid, number)


def tasks_of(job: str) -> list[int]:
    """The trainers of a job on this machine."""
    pids = [int(process.name) for process in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if environ_of(pid).get("SLURM_JOB_ID") == job and is_task(pid)]


def is_task(pid: int) -> bool:
    environ = environ_of(pid)
    return "SLURM_PROCID" in environ and environ.get("SLURM_STEP_ID") == "0" and is_alive(pid)


def is_alive(pid: int) -> bool:
    try:
        return b"meta_train.cli" in Path(f"/proc/{pid}/cmdline").read_bytes()  # a zombie has none
    except OSError:
        return False


def environ_of(pid: int) -> dict[str, str]:
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:  # it has ended
        return {}
    return dict(word.split("=", 1) for word in words if "=" in word)
