"""Runs on disk: killed and resumed, full disks, folders of somebody else."""

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from meta_train import program, settings, training
from meta_train.inner import recorded
from meta_train.parallel import devices
from meta_train.recipe import Episodes, Estimation, Family, OuterLoop, Recipe, Run
from meta_train.run import directory, preempt
from meta_train.run.log import Log
from meta_train.run.state import StateStore
from metaopt.errors import UserError

SMALL = [
    "outer_steps=600",
    "save_every=20",
    "warmup=2",
    "num_samples=4",
    "shortest=20",
    "longest=40",
    "steps_per_dispatch=5",
]
TINY = Recipe(
    family=Family("hand"),
    tasks="quadratics",
    episodes=Episodes(5, 10),
    estimator=Estimation(num_samples=8, window=5),
    outer=OuterLoop(outer_steps=4, warmup=1),
    run=Run(steps_per_dispatch=2, save_every=2),
)


def train(*arguments, **options):
    command = [sys.executable, "-m", "meta_train.cli", "train", *map(str, arguments), "--devices", "2"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def steps(folder):
    return [json.loads(row)["step"] for row in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_killed_at_any_moment_ends_with_the_same_theta(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    uninterrupted = train("quadratics", *SMALL, "--dir", whole)
    victim = train("quadratics", *SMALL, "--dir", killed)
    deadline = time.monotonic() + 120
    while not (killed / "state" / "40").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert 40 <= max(steps(killed)) < 600, "it was killed too late to mean anything"
    output, _ = uninterrupted.communicate(timeout=200)
    assert uninterrupted.returncode == 0, output
    resumed = train("--resume", killed)
    output, _ = resumed.communicate(timeout=200)
    assert resumed.returncode == 0 and "resumed" in output, output
    (ours, step), (theirs, other) = training.read_theta(killed), training.read_theta(whole)
    assert step == other == 600
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert steps(killed) == steps(whole) == list(range(1, 601))  # every row once


def test_a_signal_saves_and_says_how_to_go_on(tmp_path):
    process = train("quadratics", *SMALL, "outer_steps=100000", "--dir", tmp_path / "run")
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "state" / "20").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == preempt.EXIT_CODE and "continue with: metaopt train --resume" in output
    assert (tmp_path / "run" / preempt.MARKER).exists()
    saved = max(int(p.name) for p in (tmp_path / "run" / "state").iterdir() if p.name.isdigit())
    assert saved == max(steps(tmp_path / "run"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert training.train(TINY, folder).finished
    return folder


def test_what_a_run_leaves_behind(finished):
    assert directory.read_recipe(finished) == TINY
    rows = [json.loads(row) for row in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert {"meta_loss", "grad_norm", "problem_0/frac_dead", "problem_0/frac_capped"} <= set(rows[0])
    theta, step = training.read_theta(finished)
    assert step == 4
    np.testing.assert_allclose(rows[-1]["theta/log_learning_rate"], theta["log_learning_rate"], rtol=1e-5)  # six digits


def test_resuming_a_finished_run_changes_nothing(finished):
    before = training.read_theta(finished)[0]
    training.resume(finished)
    jax.tree.map(np.testing.assert_array_equal, training.read_theta(finished)[0], before)
    assert steps(finished) == [1, 2, 3, 4]


def test_another_recipe_is_not_resumed(finished):
    with pytest.raises(UserError, match=r"another recipe: sigma=0.01 \(asked for 0.5\)"):
        training.resume(finished, settings.override(TINY, ["sigma=0.5"]))


def test_a_run_is_not_started_on_top_of_another(finished):
    with pytest.raises(UserError, match="not empty: continue it with --resume"):
        training.train(TINY, finished)


def leave_a_start(folder, recipe, monkeypatch, error):
    """What a run leaves that fails while it is compiled."""

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("meta_train.run.loop._RunWriter.open", fail)
        with pytest.raises(type(error)):
            training.train(recipe, folder)


@pytest.mark.parametrize("error", [MemoryError("while compiling"), KeyboardInterrupt()])
def test_a_folder_is_free_again_where_nothing_was_measured(tmp_path, monkeypatch, finished, capsys, error):
    folder = tmp_path / "run"
    other = settings.override(TINY, ["sigma=0.5"])
    leave_a_start(folder, other, monkeypatch, error)
    (folder / "mirrors.json").write_text('{"tensorboard": 0}')
    (folder / "start").mkdir()  # of a checkpoint that the next run does not begin from
    assert directory.read_recipe(folder) == other
    training.train(TINY, folder)
    assert "waiting" not in capsys.readouterr().out  # the run that failed has released its folder
    assert directory.read_recipe(folder) == TINY and steps(folder) == [1, 2, 3, 4]
    assert not (folder / "mirrors.json").exists() and not (folder / "start").exists()
    assert_same_theta(folder, finished)


def test_a_folder_is_not_free_where_a_row_was_written_or_somebody_is_at_work(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    leave_a_start(folder, TINY, monkeypatch, MemoryError())
    host = socket.gethostname()
    monkeypatch.setattr(preempt, "GRACE_PERIOD", 0.0)
    for mark in (f"{host} pid {os.getpid()} 01234567\n", "another-host pid 1 01234567\n", "damaged"):
        (folder / "owner").write_text(mark)
        with pytest.raises(UserError, match="not empty: continue it with --resume"):
            training.train(TINY, folder)
    (folder / "owner").write_text(f"{host} pid {2**22 + 1} 01234567\n")  # of a process that was killed
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(UserError, match="not empty: continue it with --resume"):
        training.train(TINY, folder)
    (folder / "config.json.tmp").touch()  # of new places that a kill left half written
    with pytest.raises(UserError, match="not empty"):
        training.train(TINY, folder)
    (folder / "metrics.jsonl").write_text("")
    (folder / "thesis.tex").touch()
    with pytest.raises(UserError, match="not empty"):
        training.train(TINY, folder)
    (folder / "thesis.tex").unlink()
    assert training.train(TINY, folder).finished


def test_a_run_begins_with_what_it_is(tmp_path, capsys):
    training.train(TINY, tmp_path / "run")
    title, compiling, first, last = capsys.readouterr().out.splitlines()
    assert title == f"hand on quadratics by es_single, 4 outer steps; 8 cpu devices; folder {tmp_path / 'run'}"
    assert compiling == "compiling ..." and first.startswith("outer step 2 of 4") and last.startswith("outer step 4 of")


def test_a_folder_whose_name_python_cannot_decode_is_named(tmp_path, finished):
    name = os.fsdecode(b"\xff")
    with pytest.raises(UserError, match="letters that Python cannot read with the encoding utf-8: set PYTHONUTF8=1"):
        training.train(TINY, tmp_path / name)
    shutil.copytree(finished, tmp_path / name)
    for call in (training.resume, training.read_theta):
        with pytest.raises(UserError, match="letters that Python cannot read"):
            call(tmp_path / name)


def test_a_last_row_that_is_unfinished_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2}\n{"step"')
    assert directory.read_metrics(tmp_path) == [{"step": 1}, {"step": 2}]


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not empty: choose another"):
        training.train(TINY, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_empty_folder_is_no_run(tmp_path):
    with pytest.raises(UserError, match="holds no run: config.json is missing"):
        training.resume(tmp_path)


def test_a_damaged_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json is damaged"):
        training.resume(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to run directory .*file/run: Not a directory"):
        training.train(TINY, tmp_path / "file" / "run")
    with pytest.raises(UserError, match="file is a file: choose another"):
        training.train(TINY, tmp_path / "file")


@pytest.mark.parametrize("name", ["owner", "REQUEUE"])
def test_a_run_that_cannot_be_taken_is_named(tmp_path, finished, name):
    shutil.copytree(finished, folder := tmp_path / "run")
    (folder / name / "in the way").mkdir(parents=True)  # what cannot be written, whoever asks
    with pytest.raises(UserError, match="cannot write to run directory .*: Is a directory"):
        training.resume(folder)
    assert training.read_theta(folder)[1] == 4


def test_a_read_only_folder_is_refused(tmp_path, monkeypatch):
    # Asked of the system, not tried by chmod: root may write anywhere.
    directory.make(TINY, "optimizer", tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="permission denied"):
        training.resume(tmp_path)


def test_a_full_disk_is_named_and_the_saved_state_survives(tmp_path, monkeypatch):
    import orbax.checkpoint as ocp

    folder = tmp_path / "run"
    real = ocp.CheckpointManager.save

    def full(self, step, *args, **kwargs):
        if step >= 4:
            raise OSError(28, "No space left on device")
        return real(self, step, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", full)
        with pytest.raises(UserError, match="No space left on device; free some space .* --resume"):
            training.train(TINY, folder)
    assert training.read_theta(folder)[1] == 2
    training.resume(folder)
    assert training.read_theta(folder)[1] == 4 and steps(folder) == [1, 2, 3, 4]


def assert_same_theta(folder, other):
    jax.tree.map(np.testing.assert_array_equal, training.read_theta(folder), training.read_theta(other))


def damage(step_folder, fault):
    largest = max((path for path in step_folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    if fault == "flipped":  # in the arrays, where Orbax does not see it
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 1
        largest.write_bytes(content)
    elif fault == "missing":
        largest.unlink()
    else:
        (step_folder / "SHA256SUMS").unlink()


@pytest.mark.parametrize(
    "fault, said", [("flipped", "has changed since"), ("missing", "is missing"), ("partial", "saving was not finished")]
)
def test_a_damaged_state_is_skipped_and_made_again(tmp_path, capsys, finished, fault, said):
    shutil.copytree(finished, folder := tmp_path / "run")
    damage(folder / "state" / "4", fault)
    training.resume(folder)
    out = capsys.readouterr().out
    assert "warning: skipped outer step 4 of " in out and said in out and "at outer step 2" in out
    assert_same_theta(folder, finished)
    assert [p.name for p in (folder / "damaged").iterdir()] == ["4"] and steps(folder) == [1, 2, 3, 4]


def test_a_run_of_which_nothing_is_whole_is_not_begun_again(tmp_path, finished):
    shutil.copytree(finished, folder := tmp_path / "run")
    for step in (2, 4):
        damage(folder / "state" / str(step), "missing")
    with pytest.raises(UserError, match="holds no intact state .*outer step 4: .* is missing"):
        training.resume(folder)
    assert steps(folder) == [1, 2, 3, 4] and (folder / "state" / "4").exists()


def test_a_saved_step_is_read_by_name_and_a_damaged_one_is_named(tmp_path, finished):
    shutil.copytree(finished, folder := tmp_path / "run")
    assert training.read_theta(folder, 2)[1] == 2
    with pytest.raises(UserError, match=r"no saved outer step 3: there are \[2, 4\]"):
        training.read_theta(folder, 3)
    damage(folder / "state" / "4", "flipped")
    with pytest.raises(UserError, match="outer step 4 of .* is damaged: .* has changed"):
        training.read_theta(folder, 4)
    assert training.read_theta(folder)[1] == 2


def test_the_best_and_the_two_latest_states_are_kept(tmp_path):
    store, state = StateStore(tmp_path), program.build(TINY, devices.mesh()).init()
    for step, loss in enumerate([3.0, 1.0, 2.0, float("nan"), 4.0]):
        store.save(dataclasses.replace(state, step=state.step + step), loss)
    assert sorted(int(p.name) for p in (tmp_path / "state").iterdir()) == [1, 3, 4]
    store.close()


def test_rows_behind_the_resume_point_are_dropped_and_nan_is_null(tmp_path):
    log = Log(tmp_path, 0)
    log.write(1, {"meta_loss": np.array([1.0, np.nan, 3.0])}, seconds=6.0)
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "half a ro')  # killed while writing
    Log(tmp_path, 2).close()
    rows = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["meta_loss"]) for row in rows] == [(1, 1.0), (2, None)]


# The second step of Adam is infinite.
EXPLOSIVE = dataclasses.replace(TINY, family=Family("hand", {"learning_rate": 3e38}))


def test_a_run_in_which_every_member_diverges_counts_them_and_keeps_theta_finite(tmp_path):
    training.train(EXPLOSIVE, folder := tmp_path / "run")
    assert np.isfinite(training.read_theta(folder)[0]["log_learning_rate"])
    rows = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["problem_0/frac_capped"] > 0.5


def test_a_run_without_a_usable_gradient_says_so_and_leaves_theta_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recorded, "WORST", float("inf"))  # nothing is capped: every difference is NaN
    training.train(EXPLOSIVE, folder := tmp_path / "run")
    assert "no usable meta-gradient up to outer step 4" in capsys.readouterr().out
    fresh = EXPLOSIVE.build_family().init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, training.read_theta(folder)[0], fresh)


def test_what_a_killed_start_left_is_no_run(tmp_path):
    (tmp_path / "config.json.tmp").write_text("{")
    assert training.train(TINY, tmp_path).finished
    assert directory.read_recipe(tmp_path) == TINY


def test_what_a_killed_first_save_left_is_no_state(tmp_path, capsys, finished):
    shutil.copytree(finished, folder := tmp_path / "run")
    shutil.rmtree(folder / "state" / "4")
    (folder / "state" / "2" / "SHA256SUMS").write_text("")  # a node that crashes may leave it empty
    (folder / "state" / "6.orbax-checkpoint-tmp").mkdir()
    training.resume(folder)
    assert "skipped outer step 2 of" in capsys.readouterr().out
    assert_same_theta(folder, finished)
    assert sorted(path.name for path in (folder / "state").iterdir()) == ["2", "4"]


def test_a_run_is_begun_in_an_empty_folder_wherever_it_is(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    monkeypatch.chdir(tmp_path / "link")
    assert training.train(TINY, Path(".")).finished
    assert training.read_theta(tmp_path / "folder")[1] == 4


def test_a_damaged_row_and_all_behind_it_are_dropped(tmp_path):
    rows = ['{"step": 1}', '{"step": 2', '{"step": 3}']
    (tmp_path / "metrics.jsonl").write_text("".join(row + "\n" for row in rows))
    Log(tmp_path, 3).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_every_life_keeps_three_states_at_most(tmp_path):
    state = program.build(TINY, devices.mesh()).init()
    for life in range(3):
        store = StateStore(tmp_path)
        for step, loss in enumerate([2.0, 1.0 + life, 3.0, 4.0], 4 * life):
            store.save(dataclasses.replace(state, step=state.step + step), loss)
        store.close()
    assert sorted(int(p.name) for p in (tmp_path / "state").iterdir()) == [1, 10, 11]  # the best is of the first life
