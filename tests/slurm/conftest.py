"""These tests need a SLURM cluster that runs: ``make cluster-test`` starts one, runs them and stops it."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.slurm import cluster, runs


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
    """``runs.begin`` in a folder of the test; what it submits ends with the test."""
    jobs = []

    def submit(*recipe, **how) -> tuple[str, Path, Path]:
        jobs.append(runs.begin(tmp_path, *recipe, **how))
        return jobs[-1]

    yield submit
    for job, *_ in jobs:
        cluster.call("scancel", job)
        cluster.wait_for_end(job)
