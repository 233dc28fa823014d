"""local_cluster.sh: a second cluster beside the one of the tests comes and goes, and leaves nothing."""

import os
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.slurm.cluster import SCRIPTS, call, wait_until

pytestmark = pytest.mark.slurm


@pytest.fixture
def place(monkeypatch):
    """Directory of the cluster of this test, and no other cluster; short, as sockets demand."""
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as folder:
        place = Path(folder) / "cluster"
        monkeypatch.setenv("SLURM_LOCAL_DIR", str(place))
        monkeypatch.setenv("SLURM_LOCAL_PORT", "19300")
        monkeypatch.setenv("SLURM_CONF", str(place / "slurm.conf"))
        yield place
        local_cluster("stop")


def local_cluster(*words) -> str:
    return call(SCRIPTS / "local_cluster.sh", *words)


def processes_of(place: Path) -> set[int]:
    """Every process that names the cluster in its command or its environment, but for the caller."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            said = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:  # it has ended
            continue
        if str(place).encode() in said and int(process.name) != os.getpid():
            found.add(int(process.name))
    return found


def test_comes_and_goes(place):
    assert "running: export SLURM_CONF=" in local_cluster("start", 2, 3)
    assert "already running" in local_cluster("start")
    assert local_cluster("env") == f"export SLURM_CONF={place / 'slurm.conf'}"
    assert call("sinfo", "-h", "-p", "batch", "-N", "-o", "%N %c %T").splitlines() == [
        "127.0.0.1 3 idle",
        "127.0.0.2 3 idle",
    ]
    assert (
        call("srun", "-N2", "-n2", "sh", "-c", "echo $SLURM_PROCID of $SLURM_NTASKS").split("\n")[-1].endswith("of 2")
    )
    call("sbatch", "-o", "/dev/null", "--wrap", "trap '' TERM; srun sleep 600")  # does not leave when asked
    wait_until(lambda: call("squeue", "-h", "-s") != "")
    assert len(processes_of(place)) > 4  # two slurmd, slurmctld, munged and the job
    local_cluster("stop")
    assert not place.exists() and not processes_of(place)
    local_cluster("stop")


def test_stops_what_a_crash_left(place):
    local_cluster("start")
    call("sbatch", "-o", "/dev/null", "--wrap", "srun sleep 600")
    wait_until(lambda: call("squeue", "-h", "-s") != "")
    for daemon in ("slurmctld.pid", "slurmd.127.0.0.1.pid"):
        os.kill(int((place / daemon).read_text()), 9)
    time.sleep(0.2)
    assert processes_of(place)
    local_cluster("stop")
    wait_until(lambda: not processes_of(place), seconds=5)
    assert not place.exists()


@pytest.mark.parametrize(
    "words, message", [(["start", "two"], "NODES and CPUS are numbers, got 'two'"), ([], "start [NODES]")]
)
def test_mistakes(place, words, message):
    done = subprocess.run([SCRIPTS / "local_cluster.sh", *words], capture_output=True, text=True)
    assert done.returncode != 0 and message in done.stdout + done.stderr
    assert not place.exists()


def test_a_place_too_long_for_sockets(place, monkeypatch):
    monkeypatch.setenv("SLURM_LOCAL_DIR", f"{place}{'x' * 60}")
    done = subprocess.run([SCRIPTS / "local_cluster.sh", "start"], capture_output=True, text=True)
    assert done.returncode == 1 and "SLURM_LOCAL_DIR is too long" in done.stderr
    assert not any(place.parent.iterdir())


def test_status_of_no_cluster(place):
    done = subprocess.run([SCRIPTS / "local_cluster.sh", "status"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "not running\n")
