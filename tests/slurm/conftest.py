"""These tests need a SLURM cluster that runs: ``make cluster-test`` starts one, runs them and stops it."""

import os
import subprocess

import pytest


def cluster_runs() -> bool:
    """Whether SLURM_CONF names a cluster that answers; a site's own cluster is left alone."""
    if not os.environ.get("SLURM_CONF"):
        return False
    try:
        return subprocess.run(["sinfo", "-h"], capture_output=True, timeout=30).returncode == 0
    except FileNotFoundError:
        return False


def pytest_collection_modifyitems(items):
    ours = [item for item in items if item.get_closest_marker("slurm")]
    if ours and not cluster_runs():
        for item in ours:
            item.add_marker(pytest.mark.skip(reason="no SLURM cluster runs here: make cluster-test"))
