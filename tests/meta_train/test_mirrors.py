"""Mirrors of the metrics: every step once, and never able to stop a run."""

import importlib.machinery
import json
import struct
import subprocess
import sys
import types

import numpy as np
import pytest

from meta_train import cli, training
from meta_train.run import directory, mirrors
from meta_train.run.log import Log
from tests.meta_train.test_run import TINY


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    directory.make(TINY, "optimizer", tmp_path)
    return tmp_path


def live(folder, start, last):
    """One life of a run: goes on from ``start`` and logs the steps up to ``last``, two a dispatch."""
    log = Log(folder, start)
    for step in range(start + 1, last, 2):
        log.write(step, {"meta_loss": np.array([step, step + 1.0]), "bad": np.array([np.nan, 1.0])}, seconds=1.0)
    log.close()


def fake_wandb(monkeypatch, breaks=""):
    """A stand-in module that raises in one place; returns what it was given."""
    given = types.SimpleNamespace(steps=[], settings=[])

    def call(place):
        if place == breaks:
            raise RuntimeError(f"{place} is broken\nand says so on two lines")

    class Run:
        def log(self, values, step):
            call("log")
            given.steps.append(step)

        def finish(self):
            call("finish")

    def init(**settings):
        call("init")
        given.settings.append(settings)
        return Run()

    module = types.ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    module.init, module.Settings, module.teardown = init, lambda **settings: settings, lambda: None
    monkeypatch.setitem(sys.modules, "wandb", None if breaks == "import" else module)
    return given


def wandb_records(path):
    """The records of a .wandb file: LevelDB's log format behind seven bytes, protobuf within."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, record = path.read_bytes(), 7, b""
    while at < len(data):
        left = 32768 - at % 32768
        if left < 7:  # no header fits into what is left of the block
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield Record.FromString(record)
            record = b""


def test_a_resumed_run_is_the_same_wandb_run_and_logs_every_step_once(folder):
    mirrors.choose(folder, "wandb")
    live(folder, 0, 6)
    live(folder, 4, 10)  # 5 and 6 are done again
    pieces = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    records = [list(wandb_records(piece)) for piece in pieces]
    ids = [{r.run.run_id for r in piece if r.HasField("run")} for piece in records]
    assert ids == [{(folder / "wandb_id").read_text().strip()}] * 2
    rows = [[r.history for r in piece if r.HasField("history")] for piece in records]
    assert [[row.step.num for row in piece] for piece in rows] == [[1, 2, 3, 4, 5, 6], [7, 8, 9, 10]]
    first, second = [{i.nested_key[0]: json.loads(i.value_json) for i in row.item} for row in rows[1][:2]]
    assert first["meta_loss"] == 7.0 and "bad" not in first and second["bad"] == 1.0
    config = {i.key: json.loads(i.value_json) for r in records[0] for i in r.run.config.update}
    assert config["tasks"] == "quadratics"


@pytest.mark.parametrize("chosen, mode", [(None, "offline"), ("online", "online")])
def test_the_mode_is_decided_before_wandb_begins(folder, monkeypatch, chosen, mode):
    if chosen:
        monkeypatch.setenv("WANDB_MODE", chosen)
    given = fake_wandb(monkeypatch)
    mirrors.choose(folder, "wandb")
    live(folder, 0, 2)
    live(folder, 2, 4)
    id = (folder / "wandb_id").read_text().strip()
    assert [(s["mode"], s["id"], s["resume"]) for s in given.settings] == [(mode, id, "allow")] * 2


@pytest.mark.parametrize("place", ["import", "init", "log", "finish"])
def test_a_wandb_that_breaks_is_one_warning(folder, monkeypatch, capsys, place):
    fake_wandb(monkeypatch, place)
    mirrors.choose(folder, "wandb")
    live(folder, 0, 6)
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    (warning,) = capsys.readouterr().out.splitlines()
    assert warning.startswith("warning: wandb failed and gets no metrics until the next --resume (")
    # The next life sends what is lacking. Whether steps 1 and 2 arrived cannot be known when log raises.
    given = fake_wandb(monkeypatch)
    live(folder, 6, 8)
    assert given.steps == {"log": [3, 4, 5, 6, 7, 8], "finish": [7, 8]}.get(place, [1, 2, 3, 4, 5, 6, 7, 8])


def test_a_run_survives_a_wandb_that_breaks(tmp_path, monkeypatch, capsys):
    fake_wandb(monkeypatch, "log")
    training.train(TINY, folder := tmp_path / "run", mirror="wandb")
    assert training.read_theta(folder)[1] == TINY.outer.outer_steps
    assert capsys.readouterr().out.count("warning: wandb failed") == 1


def test_a_killed_run_never_sends_a_step_twice(folder, monkeypatch):
    given = fake_wandb(monkeypatch)
    mirrors.choose(folder, "wandb")
    live(folder, 0, 8)
    live(folder, 2, 4)  # killed earlier than the time before
    live(folder, 2, 10)
    assert given.steps == list(range(1, 11))


def test_a_mirror_chosen_late_gets_all_rows_and_the_others_stay(folder, monkeypatch):
    given = fake_wandb(monkeypatch)
    mirrors.choose(folder, "tensorboard")
    live(folder, 0, 4)
    mirrors.choose(folder, "wandb")
    mirrors.choose(folder, "wandb")  # as a requeued job does that names it each time
    live(folder, 4, 6)
    assert given.steps == [1, 2, 3, 4, 5, 6]
    assert [step for _, events in tensorboard(folder) for step, _ in events] == [1, 2, 3, 4, 5, 6]


def tensorboard(folder):
    """Of each event file its version and its (step, values)."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted((folder / "tensorboard").iterdir()):
        data, at, events = path.read_bytes(), 0, []
        while at < len(data):  # TFRecord: length, its checksum, data, its checksum
            (length,) = struct.unpack_from("<Q", data, at)
            events.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += length + 16
        version, *rows = events
        yield version.file_version, [(row.step, {v.tag: v.simple_value for v in row.summary.value}) for row in rows]


def test_tensorboard_has_every_step_once(folder):
    mirrors.choose(folder, "tensorboard")
    live(folder, 0, 4)
    live(folder, 2, 6)
    assert list(tensorboard(folder)) == [
        (
            "brain.Event:2",
            [
                (1, {"meta_loss": 1.0}),
                (2, {"meta_loss": 2.0, "bad": 1.0}),
                (3, {"meta_loss": 3.0}),
                (4, {"meta_loss": 4.0, "bad": 1.0}),
            ],
        ),
        ("brain.Event:2", [(5, {"meta_loss": 5.0}), (6, {"meta_loss": 6.0, "bad": 1.0})]),
    ]


def test_a_run_without_a_mirror_has_none(folder):
    live(folder, 0, 2)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "metrics.jsonl", "tasks.json"]


@pytest.mark.parametrize("name, package", [("wandb", "wandb"), ("tensorboard", "tensorboardX")])
def test_what_is_not_installed_is_named_before_the_run_begins(capsys, folder, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("meta_train.parallel.devices.make_cpu_devices", lambda num_samples, num_devices: None)
    new = folder / "new"
    for arguments in (["quadratics", "--dir", new], ["--resume", folder]):
        assert cli.main([str(word) for word in ["train", *arguments, "--log", name]]) == 2
        message = f"metaopt: --log {name} needs {package}, which is not installed: pip install {package}\n"
        assert capsys.readouterr().err == message
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "tasks.json"]


def test_only_those_wait_for_wandb_who_chose_it():
    code = "import sys, meta_train.cli, meta_train.run; sys.exit(bool({'wandb', 'tensorboardX'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
