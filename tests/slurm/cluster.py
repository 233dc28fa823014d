"""Jobs on the cluster that SLURM_CONF names: submit one, watch it, wait for it."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
SCRIPTS = Path(__file__).parents[2] / "slurm"


def call(*command, **environment) -> str:
    """The output of a command, which must succeed."""
    words = [str(word) for word in command]
    environment = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60, env=environment).stdout.strip()


def submit(script: str, *arguments, options=(), **environment) -> str:
    """Submits a script of ``slurm/`` and returns the number of the job."""
    return call("sbatch", "--parsable", *options, SCRIPTS / script, *arguments, **environment)


def preemptible() -> list[str]:
    """Options for the last two nodes, all of them: for jobs that take each other's place."""
    return ["--nodes=2", "--exclusive", f"--nodelist={','.join(_nodes()[-2:])}"]


def undisturbed() -> list[str]:
    """Options for all nodes but those, where there are others."""
    return [f"--exclude={','.join(_nodes()[2:])}"] if len(_nodes()) > 2 else []


def _nodes() -> list[str]:
    return sorted(call("sinfo", "-h", "-p", "batch", "-N", "-o", "%N").split())


def state(job: str) -> str:
    """PENDING, RUNNING, COMPLETING, COMPLETED, FAILED, CANCELLED, ..."""
    return call("squeue", "-h", "-t", "all", "-j", job, "-o", "%T")


def lives(job: str) -> int:
    """How often the job was begun."""
    return 1 + int(call("scontrol", "show", "job", job).partition("Restarts=")[2].split()[0])


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def wait_for_end(job: str, seconds: float = 120) -> str:
    """Waits until the job has ended for good and returns its last state."""

    def ended() -> bool:
        if state(job) not in ENDED:
            return False
        time.sleep(0.5)  # one that is requeued passes through them
        return state(job) in ENDED

    wait_until(ended, seconds)
    return state(job)


def states(job: str) -> list[str]:
    """The states of the elements of an array."""
    return call("squeue", "-h", "-t", "all", "-r", "-j", job, "-o", "%T").splitlines()
