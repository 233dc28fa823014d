"""A recipe file outside the tree, submitted as its author would, to a real SLURM."""

import json
import shutil
from pathlib import Path

import pytest

from meta_train import cli
from tests.slurm import cluster
from tests.slurm.test_arrays import submitted

pytestmark = pytest.mark.slurm

OUTSIDE = Path(__file__).parents[1] / "outside"
SHORT = ["outer_steps=20", "num_samples=8"]


@pytest.fixture
def outside(tmp_path, monkeypatch):
    folder = shutil.copytree(OUTSIDE, tmp_path / "my folder")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("METAOPT_CHECKPOINTS", str(folder / "checkpoints"))
    return folder


def submit(capsys, *words) -> list[str]:
    assert cli.main(["submit", *words, "--", *cluster.undisturbed()]) == 0
    return submitted(capsys)


def test_a_run_a_sweep_and_an_evaluation_of_ones_own(capsys, outside):
    (job,) = submit(capsys, "train", "./my_recipe.py", *SHORT, "--dir", "runs/mine")
    sweep = ["digits-quick", "tasks=./my_tasks.py:my_suite", "family=my_package.gain", "seed=0,1", "window=5"]
    short = ["shortest=20", "longest=40", "warmup=2", "save_every=20"]
    (array,) = submit(capsys, "sweep", *sweep, *short, *SHORT, "--dir", "runs/sweep")
    cluster.wait_until(lambda: cluster.states(job) == ["COMPLETED"], seconds=120)
    assert (outside / "runs" / "mine" / "state" / "20" / "SHA256SUMS").exists()
    options = [
        "--suite",
        "./my_tasks.py:my_suite",
        "--baselines",
        "sgdm",
        "--steps",
        "40",
        "--seeds",
        "2",
        "--out",
        "r",
    ]
    *_, merge = submit(capsys, "evaluate", "runs/mine", *options)
    cluster.wait_until(lambda: cluster.states(merge) == ["COMPLETED"], seconds=180)
    rows = [json.loads(line) for line in (outside / "r" / "results.jsonl").read_text().splitlines()[1:]]
    assert {(row["task"], row["method"]) for row in rows} == {
        (task, method) for task in ("bowl", "bowl-4") for method in ("sgdm", "mine")
    }
    cluster.wait_until(lambda: cluster.states(array) == ["COMPLETED"] * 2, seconds=120)
    for seed in (0, 1):
        assert (outside / "runs" / "sweep" / f"digits-quick,seed={seed}" / "state" / "20" / "SHA256SUMS").exists()
