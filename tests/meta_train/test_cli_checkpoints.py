"""Checkpoints from the command line: an import that asks, names that are taken, and the seal."""

import io
import shlex

import numpy as np
import pytest

from meta_train import cli
from metaopt import checkpoint
from tests.metaopt.foreign_files import SAMPLES, sample


def fails(capsys, *arguments) -> str:
    assert cli.main([str(a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("metaopt: ") and error.count("\n") == 1
    return error


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a space in its name, with a file of OPEN, and with checkpoints of its own."""
    folder = tmp_path / "my files"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("METAOPT_CHECKPOINTS", str(folder / "own"))
    file = io.BytesIO()
    np.save(file, np.linspace(-1, 1, 3571, dtype=np.float32))
    (folder / "multi OPEN.npy").write_bytes(file.getvalue())
    return folder


ASKED = {
    "multi OPEN.npy": {"num_minibatches": 8, "num_epochs": 4},
    "mulo_theta_seeded.pickle": {"step_multiplier": 0.001},
    "velo_adafac_h4.ckpt": {"step_multiplier": 0.001},
    "velo_hyper_v2_fixed.ckpt": {"bugged_loss_features": False, "bugged_lstm_state": False, "relative": True},
    "celo2_theta_seeded.state": {"orthogonalize": True, "learning_rate": 0.001},
    "celo2mlp_seeded.safetensors": {"orthogonalize": True, "learning_rate": 0.001},
    "metamlp_seeded.safetensors": {"step_multiplier": 0.01},
}


def test_every_file_that_is_ambiguous_is_tried():
    assert set(ASKED) == {*SAMPLES, "multi OPEN.npy"} - {"celo_theta_seeded.state"}  # which says everything


@pytest.mark.parametrize("name", ASKED)
def test_the_command_that_an_import_asks_for_works(capsys, here, name):
    file = here / name if name.startswith("multi") else sample(name)
    message = fails(capsys, "import", file, "--as", "mine", "--licence", "MIT")
    assert "makes another optimizer: pass the option " in message
    program, *arguments = shlex.split(message.partition("; e.g. ")[2])
    assert program == "metaopt" and cli.main(arguments) == 0
    manifest = checkpoint.read("mine").manifest
    assert manifest["config"] == manifest["config"] | ASKED[name] and manifest["licence"] == "MIT"


def test_every_answer_is_needed(capsys, here):
    command = ["import", "multi OPEN.npy", "--as", "mine"]
    message = fails(capsys, *command, "--num-epochs", 4)
    assert "pass the option num_minibatches, minibatches in an epoch of the PPO that it will train; e.g." in message
    assert message.endswith("metaopt import 'multi OPEN.npy' --as mine --num-epochs 4 --num-minibatches 8\n")
    message = fails(capsys, *command, "--num-epochs", 4, "--num-minibatches", 0)
    assert "--num-minibatches must be at least 1, got 0" in message
    assert not (here / "own").exists()


def test_an_import_replaces_a_checkpoint_when_asked(capsys, here):
    command = ["import", "multi OPEN.npy", "--as", "mine", "--num-minibatches", "8", "--num-epochs"]
    assert cli.main([*command, "4"]) == 0
    assert "there is a checkpoint mine already: choose another name, or" in fails(capsys, *command, 2)
    assert cli.main([*command, "2", "--overwrite"]) == 0
    assert checkpoint.read("mine").manifest["config"]["num_epochs"] == 2


def test_an_edited_manifest_is_sealed_by_the_command_it_is_refused_with(capsys, here):
    assert cli.main(["import", str(sample("celo_theta_seeded.state")), "--as", "mine"]) == 0
    path = here / "own" / "mine" / "manifest.json"
    path.write_text(path.read_text().replace("imported from", "brought from"))
    message = fails(capsys, "info", "mine")
    program, *arguments = shlex.split(message.partition("run: ")[2])
    assert program == "metaopt" and capsys.readouterr().out == "" and cli.main(arguments) == 0
    assert capsys.readouterr().out == f"{path}\n"
    assert checkpoint.read("mine").manifest["summary"].startswith("brought from")
