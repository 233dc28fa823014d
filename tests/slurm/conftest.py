"""These tests need a SLURM cluster that runs: ``make cluster-test`` starts one, runs them and stops it."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.slurm import cluster
from tests.slurm.runs import STAND_IN


def cluster_runs() -> bool:
    """Whether SLURM_CONF names a cluster of ``local_cluster.sh`` that answers; a site's own is left alone."""
    path = Path(os.environ.get("SLURM_CONF", ""))
    if not path.is_file() or "ClusterName=local\n" not in path.read_text():
        return False
    return subprocess.run(["sinfo", "-h"], capture_output=True, timeout=30).returncode == 0


def pytest_collection_modifyitems(items):
    ours = [item for item in items if item.get_closest_marker("slurm")]
    if ours and not cluster_runs():
        for item in ours:
            item.add_marker(pytest.mark.skip(reason="no SLURM cluster runs here: make cluster-test"))


@pytest.fixture
def train(tmp_path):
    """Submits a run of the stand-in on two tasks, or of METAOPT_PYTHON; gives its job, its directory and its log."""
    jobs = []

    def submit(*recipe, name="run", nodes=None, options=(), **environment) -> tuple[str, Path, Path]:
        run, log = tmp_path / name, tmp_path / f"{name}.log"
        nodes = nodes or ["--nodes=2", *cluster.undisturbed()]
        options = (*nodes, "--ntasks-per-node=1", f"--output={log}", *options)
        environment = {"METAOPT_PYTHON": STAND_IN, **environment}
        jobs.append(cluster.submit("meta_train.sbatch", run, *recipe, options=options, **environment))
        return jobs[-1], run, log

    yield submit
    for job in jobs:
        cluster.call("scancel", job)
        cluster.wait_for_end(job)
