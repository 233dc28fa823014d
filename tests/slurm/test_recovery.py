"""Real meta-training on a real SLURM: whatever ends its job, theta comes out the same to the last bit."""

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from meta_train import run as runs
from tests.slurm import cluster
from tests.slurm.cluster import SCRIPTS

pytestmark = pytest.mark.slurm

CLUSTER = Path(os.environ.get("SLURM_CONF", "")).parent  # of slurm/local_cluster.sh
STEPS = 4000
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
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1")
ONE_NODE = ("--nodes=1", "--ntasks-per-node=2")


class Life:
    """A run that was submitted."""

    def __init__(self, folder: Path, options=TWO_NODES):
        self.run, self.log = folder / "run", folder / "log"
        options = (*options, f"--output={self.log}")
        environ = {"METAOPT_PYTHON": sys.executable, "PYTHONPATH": SCRIPTS.parent}
        self.job = cluster.submit("meta_train.sbatch", self.run, *RECIPE, options=options, **environ)

    def saved(self) -> int:
        return max((int(path.parent.name) for path in self.run.glob("state/*/SHA256SUMS")), default=0)

    def wait_for_state(self) -> None:
        cluster.wait_until(lambda: self.saved() > 0, seconds=120)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Theta of the run that nothing interrupts."""
    life = Life(tmp_path_factory.mktemp("whole"))
    assert cluster.wait_for_end(life.job) == "COMPLETED", life.log.read_text()
    assert "process 0 of 2" in life.log.read_text() and "process 1 of 2" in life.log.read_text()
    return runs.read_theta(life.run)


@pytest.fixture
def begin(tmp_path):
    """Submits the run and waits until it has saved something."""
    lives = []

    def submit(options=TWO_NODES) -> Life:
        lives.append(Life(tmp_path, options))
        lives[-1].wait_for_state()
        return lives[-1]

    yield submit
    for life in lives:
        cluster.call("scancel", life.job)


def assert_same(life: Life, whole, reason: str) -> None:
    assert cluster.wait_for_end(life.job, seconds=200) == "COMPLETED", life.log.read_text()
    log = life.log.read_text()
    assert cluster.lives(life.job) > 1 and reason in log
    resumed = [int(step) for step in re.findall(r"resumed .* at outer step (\d+)", log)]
    assert resumed and all(0 < step < STEPS for step in resumed)
    theta, step = runs.read_theta(life.run)
    assert step == whole[1] == STEPS
    jax.tree.map(np.testing.assert_array_equal, theta, whole[0])


def test_preempted_by_a_higher_partition(begin, whole):
    life = begin()
    options = ("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null")
    urgent = cluster.call("sbatch", "--parsable", *options, "--wrap", "true")
    assert cluster.wait_for_end(urgent) == "COMPLETED"
    assert_same(life, whole, "requeued: it stopped early and saved")


def test_requeued_by_hand(begin, whole):
    life = begin()
    cluster.call("scontrol", "requeue", life.job)
    assert_same(life, whole, "SLURM is ending the job")


def test_a_task_is_killed(begin, whole):
    life = begin()
    victim = next(pid for pid in tasks_of(life.job) if environ_of(pid)["SLURM_PROCID"] == "1")
    os.kill(victim, signal.SIGKILL)
    assert_same(life, whole, "it crashed, but had got further")


def test_time_limit(begin, whole):
    """A minute is the least that SLURM has. Tasks that are held up see that another dispatch may not fit."""
    life = begin((*TWO_NODES, "--time=1"))
    end = time.monotonic() + 16  # twice that and what saving takes is more than is left of the minute
    hold(tasks_of(life.job), lambda: time.monotonic() > end)
    assert_same(life, whole, "requeued: it stopped early and saved")


def test_the_daemon_of_a_node_stops(begin, whole):
    """SLURM gives the node up and starts the job on the other, while the tasks on the first still live."""
    life = begin(ONE_NODE)
    node = cluster.call("squeue", "-h", "-j", life.job, "-o", "%N")
    orphans, owner = tasks_of(life.job), (life.run / "owner").read_text()
    os.kill(int((CLUSTER / f"slurmd.{node}.pid").read_text()), signal.SIGKILL)
    try:
        hold(orphans, lambda: (life.run / "owner").read_text() != owner)
        assert_same(life, whole, "was not left in order")
        assert "another process has taken" in life.log.read_text()
        cluster.wait_until(lambda: not any(map(is_alive, orphans)))
    finally:
        cluster.call("slurmd", "-N", node, "-f", CLUSTER / "slurm.conf", PATH=f"{os.environ['PATH']}:/usr/sbin")
        cluster.wait_until(lambda: cluster.call("sinfo", "-h", "-n", node, "-p", "batch", "-o", "%T") == "idle")


def hold(pids: list[int], until: Callable[[], bool]) -> None:
    """Stops processes until a condition holds; lets them run for moments, so that they do not lose each other."""
    while not until():
        signal_all(pids, signal.SIGSTOP)
        end = time.monotonic() + 18
        while not until() and time.monotonic() < end:
            time.sleep(0.1)
        signal_all(pids, signal.SIGCONT)
        time.sleep(0.3)


def signal_all(pids: list[int], number: int) -> None:
    for pid in pids:
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
