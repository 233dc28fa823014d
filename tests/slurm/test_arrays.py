"""``metaopt submit`` of job arrays, on a real SLURM."""

import json

import pytest

from meta_train import cli
from metaopt import checkpoint, families
from tests.slurm import cluster
from tests.slurm.runs import STAND_IN

pytestmark = pytest.mark.slurm


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr("sys.executable", str(STAND_IN))  # what submit tells the scripts to run


def submitted(capsys) -> list[str]:
    return [line.split()[-1] for line in capsys.readouterr().out.splitlines() if line.startswith("submitted job")]


def test_every_index_of_a_sweep_is_a_run_of_its_own(capsys, tmp_path, stand_in):
    words = ["digits-quick", "quadratics", "outer_steps=110,120", "save_every=10"]
    assert (
        cli.main(["submit", "sweep", *words, "--dir", str(tmp_path), "--at-once", "3", "--", *cluster.undisturbed()])
        == 0
    )
    (job,) = submitted(capsys)
    cluster.wait_until(lambda: cluster.states(job) == ["COMPLETED"] * 4)
    for name in ("digits-quick", "quadratics"):
        for steps in (110, 120):
            run = tmp_path / f"{name},outer_steps={steps}"
            assert json.loads((run / "config.json").read_text())["outer_steps"] == steps
            assert (run / "state" / str(steps)).is_dir()


def test_only_the_interrupted_index_goes_on(capsys, tmp_path, stand_in):
    """SLURM gives the last element of an array the number of the whole array: it must not requeue the others."""
    words = ["digits-quick", "seed=0,1", "outer_steps=40", "save_every=10"]
    assert cli.main(["submit", "sweep", *words, "--dir", str(tmp_path), "--", *cluster.undisturbed()]) == 0
    (job,) = submitted(capsys)
    last = tmp_path / "digits-quick,seed=1"
    cluster.wait_until((last / "state").is_dir)
    cluster.call("scancel", "--signal=USR1", f"{job}_1.0")
    cluster.wait_until(lambda: cluster.states(job) == ["COMPLETED"] * 2)
    assert [cluster.lives(f"{job}_{index}") for index in (0, 1)] == [1, 2]
    assert (last / "state" / "40").is_dir()


def test_an_evaluation_in_shards(capsys, tmp_path, monkeypatch):
    """The real thing on one task: two shards, then the report."""
    import jax

    monkeypatch.setenv("METAOPT_CHECKPOINTS", str(tmp_path / "own"))
    theta = families.build("hand", learning_rate=0.3).init(jax.random.key(0))
    checkpoint.save("mine", "hand", {"learning_rate": 0.3}, theta, meta_trained_on=[], summary="a test")
    out = tmp_path / "report"
    options = ["--suite", "quadratics", "--baselines", "sgdm", "--steps", "40", "--seeds", "2", "--out", str(out)]
    assert cli.main(["submit", "evaluate", "mine", *options, "--", *cluster.undisturbed()]) == 0
    shards, merge = submitted(capsys)
    cluster.wait_until(lambda: cluster.states(merge) == ["COMPLETED"], seconds=120)
    assert cluster.states(shards) == ["COMPLETED"] * 2
    assert (out / "report.html").is_file()
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(row["method"] for row in rows[1:])) == ["sgdm", "mine"]
