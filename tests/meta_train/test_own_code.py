"""A folder outside the tree: a user's own family, task, suite and estimator through every command."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import metaopt
from meta_train import cli, training
from meta_train.cluster import sweep
from meta_train.evaluation import evaluate
from meta_train.run import directory
from metaopt.errors import UserError

OUTSIDE = Path(__file__).parents[1] / "outside"
NAMES = ["tasks=./my_tasks.py:my_suite", "family=my_package.gain", "estimator=./my_estimator.py:half_pes"]
SHORT = ["num_samples=8", "window=5", "shortest=20", "longest=40", "outer_steps=10", "warmup=2", "save_every=10"]


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """The folder, with a space in its path, a finished run and its checkpoint."""
    folder = tmp_path_factory.mktemp("some where") / "my folder"
    shutil.copytree(OUTSIDE, folder)
    run(folder, "train", "./my_recipe.py", "sigma=0.2", "--dir", "runs/mine")
    run(folder, "export", "runs/mine", "mine", "--summary", "a gain")
    return folder


def start(folder, *words, cwd=None):
    """The command as a user types it, in a process of its own."""
    command = [sys.executable, "-m", "meta_train.cli", *map(str, words)]
    environ = os.environ | {"METAOPT_CHECKPOINTS": str(folder / "checkpoints"), "PYTHONPATH": str(OUTSIDE.parents[1])}
    devices = ["--devices", "2"] if words[0] == "train" else []
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, *devices], cwd=cwd or folder, env=environ, **pipes)


def run(folder, *words, cwd=None) -> str:
    process = start(folder, *words, cwd=cwd)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return output


def fails(folder, *words) -> str:
    process = start(folder, *words)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 2 and output.startswith("metaopt: ") and output.count("\n") == 1, output
    return output


def rows(run_dir):
    return [json.loads(row) for row in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_of_ones_own_learns(outside):
    losses = [row["meta_loss"] for row in rows(outside / "runs" / "mine")]
    # Ten outer steps at either end; from 0.01 to a rate that solves a bowl, the log of the loss falls by over 0.5.
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.5


def test_a_run_directory_says_where_names_came_from(outside):
    run_dir = outside / "runs" / "mine"
    assert (run_dir / "recipe.py").read_bytes() == (outside / "my_recipe.py").read_bytes()
    config = directory.read_config(run_dir)
    assert config["source"] == str(outside / "my_recipe.py") and config["search"] == [str(outside)]
    assert config["recipe"]["family"]["name"] == {"object": "gain"} and config["recipe"]["estimator"]["sigma"] == 0.2
    assert json.loads((run_dir / "tasks.json").read_text())[0]["family"] == "bowl"


def test_a_killed_run_goes_on_from_anywhere_though_its_recipe_has_changed(outside, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(outside, folder, ignore=shutil.ignore_patterns("runs"))
    victim = start(folder, "train", "./my_recipe.py", "sigma=0.2", "outer_steps=400", "--dir", "runs/mine")
    deadline = time.monotonic() + 120
    while not (folder / "runs" / "mine" / "state" / "20" / "SHA256SUMS").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert 20 <= rows(folder / "runs" / "mine")[-1]["step"] < 400, "it was killed too late to mean anything"
    (folder / "my_recipe.py").write_text("raise SystemExit('this is another experiment by now')\n")
    run(folder, "train", "--resume", folder / "runs" / "mine", cwd=tmp_path)
    whole = folder / "runs" / "whole"
    shutil.copy(OUTSIDE / "my_recipe.py", folder)
    run(folder, "train", "./my_recipe.py", "sigma=0.2", "outer_steps=400", "--dir", whole)
    (ours, step), (theirs, _) = training.read_theta(folder / "runs" / "mine"), training.read_theta(whole)
    assert step == 400
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_checkpoint_of_ones_own_family_runs_no_code_unless_its_user_says_so(outside, monkeypatch):
    monkeypatch.setenv("METAOPT_CHECKPOINTS", str(outside / "checkpoints"))
    manifest = json.loads((outside / "checkpoints" / "mine" / "manifest.json").read_text())
    assert manifest["family"] == "my_recipe.py:gain" and manifest["kind"] == "optimizer" and "licence" not in manifest
    assert manifest["meta_trained_on"][0]["architecture"] == {"dim": [3, 3]}
    with pytest.raises(UserError, match="my_recipe.py:gain', which metaopt does not have .* pass family="):
        metaopt.load("mine", num_steps=10)
    reference = f"{outside / 'my_recipe.py'}:gain"
    theta, _ = training.read_theta(outside / "runs" / "mine")
    params = {"w": np.ones(3, np.float32)}
    for family in (reference, metaopt.families.find(reference)):
        tx = metaopt.load("mine", num_steps=10, family=family)
        updates, _ = tx.update(params, tx.init(params), params)
        rate = np.exp(theta["log_rate"] + theta["halves"][0])
        np.testing.assert_allclose(updates["w"], -rate * params["w"], rtol=1e-6)


def test_runs_and_checkpoints_side_by_side(outside):
    words = ["--suite", "./my_tasks.py:my_suite", "--baselines", "adamw", "--steps", "40", "--seeds", "2"]
    output = run(outside, "evaluate", "runs/mine", "small-fc-images", *words, "--out", "reports/two")
    assert "bowl-4" in output and "small-fc-images: family" in output and "mine: architecture" in output
    shutil.copytree(outside / "checkpoints" / "mine", outside / "elsewhere" / "other", dirs_exist_ok=True)
    run(outside, "evaluate", "runs/mine", "./elsewhere/other", *words, "--family", "my_recipe.py:gain", "--out", "r")
    ours, theirs = ([row for row in rows_of(outside / "r") if row["method"] == name] for name in ("mine", "other"))
    assert [row | {"method": ""} for row in ours] == [row | {"method": ""} for row in theirs]
    both = [row for row in rows_of(outside / "reports" / "two") if row["method"] in ("adamw", "mine")]
    assert both == [row for row in rows_of(outside / "r") if row["method"] in ("adamw", "mine")]
    assert "give it with --family path/to/file.py:name" in fails(outside, "evaluate", "mine", *words)
    assert "my_recipe.py:gain" in run(outside, "info", "mine")


def rows_of(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()[1:]]


@pytest.fixture(scope="module")
def named(outside):
    """A run of a shipped recipe with everything replaced by references."""
    run(outside, "train", "digits-quick", *NAMES, *SHORT, "--dir", "runs/named")
    return outside / "runs" / "named"


def test_names_of_a_shipped_recipe_are_replaced_by_references(outside, named, tmp_path):
    config = directory.read_config(named)
    assert config["family"] == "my_package.gain" and config["recipe"]["tasks"] == f"{outside / 'my_tasks.py'}:my_suite"
    assert config["recipe"]["family"]["settings"] == {}  # those of digits-quick were small_fc's
    assert "resumed" in run(outside, "train", "--resume", named, cwd=tmp_path)
    run(outside, "export", named, "named", cwd=tmp_path)
    assert "my_package.gain" in run(outside, "info", "named", "--family", "my_package.gain")


def test_what_cannot_be_found_again_is_named_with_the_remedy(outside, named):
    (outside / "my_tasks.py").rename(outside / "moved.py")
    try:
        message = fails(outside, "train", "--resume", "runs/named")
        assert f"there is no file {outside / 'my_tasks.py'}" in message
        assert "metaopt train --resume runs/named tasks=path/to/file.py:name" in message
        run(outside, "export", "runs/named", "still")  # needs no code of the tasks
        assert "resumed" in run(outside, "train", "--resume", "runs/named", "tasks=moved.py:my_suite")
        assert "sigma=1 cannot change: a run keeps" in fails(outside, "train", "--resume", "runs/named", "sigma=1")
    finally:
        (outside / "moved.py").rename(outside / "my_tasks.py")
        directory.relocate(named, [f"tasks={outside / 'my_tasks.py'}:my_suite"])


def test_jobs_and_sweeps_name_files_by_their_whole_path(outside, capsys, monkeypatch):
    monkeypatch.chdir(outside)
    assert cli.main(["submit", "train", "./my_recipe.py", *NAMES[:1], "--dir", "runs/new", "--dry-run"]) == 0
    command = capsys.readouterr().out
    assert f"'{outside}/my_recipe.py' 'tasks={outside}/my_tasks.py:my_suite'" in command
    runs = sweep.plan(["./my_recipe.py", "estimator=pes,./my_estimator.py:half_pes"], Path("s"))
    assert [str(each.folder) for each in runs] == [
        "s/my_recipe,estimator=pes",
        "s/my_recipe,estimator=my_estimator-half_pes",
    ]
    assert runs[1].recipe == f"{outside}/my_recipe.py"
    assert runs[1].settings == (f"estimator={outside}/my_estimator.py:half_pes",)
    words = ["small-fc-images", "--suite", "./my_tasks.py:my_suite", "--baselines", "lion", "--dry-run"]
    assert cli.main(["submit", "evaluate", *words]) == 0
    assert f"'{outside}/my_tasks.py:my_suite'" in capsys.readouterr().out


def test_a_checkpoint_is_no_run_whatever_else_its_folder_holds(outside, monkeypatch):
    monkeypatch.setenv("METAOPT_CHECKPOINTS", str(outside / "checkpoints"))
    folder = shutil.copytree(outside / "checkpoints" / "mine", outside / "elsewhere" / "both")
    shutil.copytree(outside / "runs" / "mine", folder, dirs_exist_ok=True)
    (folder / "recipe.py").write_text("raise SystemExit('this must not run')\n")
    assert not directory.is_run(folder) and directory.is_run(outside / "runs" / "mine")
    with pytest.raises(UserError, match="will not run unasked"):
        evaluate.read(str(folder))
    for unset in ("", None):  # "" is what an unset variable of a shell gives
        with pytest.raises(UserError):
            metaopt.load(folder, family=unset)


def test_a_manifest_names_no_folder_of_the_machine_it_was_made_on(outside, named):
    run(outside, "export", "runs/named", "portable")
    text = (outside / "checkpoints" / "portable" / "manifest.json").read_text()
    assert str(outside) not in text and '"tasks": "my_tasks.py:my_suite"' in text


def test_a_recipe_of_a_package_is_resumed_though_it_imports_its_neighbors(outside):
    text = (outside / "my_recipe.py").read_text().replace("family=gain", "family=neighbor.build(neighbor.Config())")
    (outside / "my_package" / "experiment.py").write_text(
        text.replace("import optax", "import optax\nfrom . import gain as neighbor", 1)
    )
    run(outside, "train", "my_package.experiment:recipe", "outer_steps=10", "--dir", "runs/of-package")
    assert "resumed" in run(outside, "train", "--resume", outside / "runs" / "of-package", cwd=outside.parent)


def test_settings_that_are_tuples_come_back_from_json(outside):
    sized = [
        "from my_recipe import gain",
        "def sized(sizes=(1, 2)):",
        "    assert isinstance(sizes, tuple)",
        "    return gain()",
    ]
    (outside / "sized.py").write_text("\n".join(sized) + "\n")
    words = ["family=./sized.py:sized", "settings.sizes=(3,4)", *SHORT, "--dir", "runs/sized"]
    run(outside, "train", "./my_recipe.py", *words)
    assert "resumed" in run(outside, "train", "--resume", "runs/sized")
    run(outside, "export", "runs/sized", "sized")
    assert json.loads((outside / "checkpoints" / "sized" / "manifest.json").read_text())["config"] == {"sizes": [3, 4]}
    run(outside, "info", "sized", "--family", "sized.py:sized")
