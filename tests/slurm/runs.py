"""Runs on the cluster: what is saved, and what is to become of their jobs."""

import json
import re
from pathlib import Path

import jax
import numpy as np

from meta_train.training import read_theta
from tests.slurm import cluster

STAND_IN = Path(__file__).with_name("stand_in.py")  # in the place of the Python that would run meta_train.cli


def begin(
    folder: Path, *recipe, name="run", nodes=(), tasks_per_node=1, options=(), **environment
) -> tuple[str, Path, Path]:
    """Submits a run of the stand-in, or of METAOPT_PYTHON; gives its job, its directory and its log."""
    run, log = folder / name, folder / f"{name}.log"
    nodes = nodes or ["--nodes=2", *cluster.undisturbed()]
    options = (*nodes, f"--ntasks-per-node={tasks_per_node}", f"--output={log}", *options)
    environment = {"METAOPT_PYTHON": STAND_IN, **environment}
    return cluster.submit("meta_train.sbatch", run, *recipe, options=options, **environment), run, log


def saved(run: Path) -> list[int]:
    """The outer steps with a state."""
    return sorted(int(path.parent.name) for path in run.glob("state/*/SHA256SUMS"))


def wait_for_state(run: Path) -> None:
    cluster.wait_until(lambda: bool(saved(run)), seconds=120)


def metrics(run: Path) -> list[dict]:
    """What was logged, but for when it was."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("time", "seconds")} for line in lines]


def make_room() -> str:
    """Has a job of the partition urgent take the preemptible nodes for a moment."""
    words = ("--partition=urgent", *cluster.preemptible(), "--output=/dev/null", "--wrap", "true")
    return cluster.call("sbatch", "--parsable", *words)


def assert_finished(job: str, run: Path, log: Path) -> None:
    assert cluster.wait_for_end(job) == "COMPLETED", log.read_text()
    (outer_steps,) = re.findall(r'"outer_steps": (\d+)', (run / "config.json").read_text())  # as the scripts read it
    assert saved(run)[-1] == int(outer_steps)
    assert not (run / "REQUEUE").exists()
    assert log.read_text().count(f"{run} is finished") == 1


def assert_goes_on(job: str, run: Path, log: Path, reason: str) -> None:
    """Its second life begins where the first has saved, and ends well."""
    cluster.wait_until(lambda: cluster.lives(job) == 2 and cluster.state(job) == "PENDING")
    newest = saved(run)[-1:]
    assert reason in log.read_text()
    assert_finished(job, run, log)
    assert cluster.lives(job) == 2
    assert newest == [int(step) for step in re.findall(rf"resumed {run} at outer step (\d+)", log.read_text())]


def assert_same_theta(run: Path, other: Path) -> None:
    """To the last bit."""
    (ours, step), (theirs, last) = read_theta(run), read_theta(other)
    assert step == last
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def assert_gave_up(job: str, log: Path, reason: str) -> None:
    assert cluster.wait_for_end(job) == "FAILED"
    assert reason in log.read_text()
