"""The command line: what it prints, and one clear line for every mistake."""

import json
from pathlib import Path

import pytest

from meta_train import cli, recipes, settings
from metaopt import families
from metaopt.errors import UserError
from tests import golden

GOLDEN = Path(golden.__file__).parent


def fails(capsys, *arguments) -> str:
    assert cli.main([str(a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("metaopt: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["digits-quik"], "unknown recipe 'digits-quik'; did you mean 'digits-quick'?"),
        (["quadratics", "sigm=1"], "did you mean 'sigma'?"),
        (["quadratics", "settings.rul='sgd'"], "did you mean 'rule'?"),
        (["quadratics", "settings.rule=adamax"], "rule must be one of"),
        (["quadratics", "--dir", "here", "sigm=1"], "did you mean 'sigma'?"),
        (["quadratics", "only=schedule"], "name it with start="),
        (["quadratics", "sigma=big"], "sigma takes float, got 'big'"),
        (["quadratics", "num_samples=1.5"], "num_samples takes int, got 1.5"),
        (["quadratics", "sigma"], "given as name=value, got 'sigma'"),
        (["quadratics", "shortest=0"], "episodes need 1 <= shortest"),
        (["quadratics", "estimator=pez"], "did you mean 'pes'?"),
        (["quadratics", "estimator=gpes", "options.windows_per_drw=2"], "did you mean 'windows_per_draw'?"),
        (
            ["quadratics", "--devices", "8", "estimator=gpes", "options.windows_per_draw=0"],
            "windows_per_draw must be at least 1",
        ),
        (["quadratics", "--devices", "8", "estimator=bmg", "options.matching=kl"], "take matching=parameters"),
        (["quadratics", "combine=lst"], "did you mean 'last'?"),
        (["quadratics", "shaping=ranks"], "did you mean 'rank'?"),
        (["quadratics", "distribution=loguniform"], "did you mean 'log_uniform'?"),
        (["quadratics", "estimator=gpes", "options.windows_per_draw=two"], "takes int, got 'two'"),
        (["quadratics", "--devices", "8", "estimator=tbptt", "shaping=rank"], "does not use shaping: set shaping=none"),
        (["quadratics", "clip=0.0"], "learning_rate and clip must be above 0"),
        (["quadratics", "tasks=quadratic"], "did you mean 'quadratics'?"),
        (["quadratics", "outer_steps=15"], "multiples of steps_per_dispatch"),
        (["quadratics", "num_samples=3", "--devices", "8"], "multiple of the 8 devices, got 3"),
        ([], f"name a recipe ({', '.join(recipes.names())})"),
    ],
)
def test_mistakes_in_training(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, "train", *arguments)
    # Nothing is left behind by what was refused.
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nothing"], "unknown checkpoint 'nothing'"),
        (["mine", "--suite", "heldout"], "did you mean 'heldout-small'?"),
        (["mine", "--baselines", "adam"], "did you mean 'adamw'?"),
        (["mine", "--baselines", "lion,lion"], "two methods are called 'lion'"),
        (["mine", "--suite", "quadratics", "--tasks", "quadrati"], "did you mean 'quadratic'?"),
        (["mine", "--steps", "30"], "multiple of 20, got 30"),
        (["mine", "--seeds", "0"], "at least 1"),
    ],
)
def test_mistakes_in_evaluation(capsys, checkpoint, arguments, message):
    assert message in fails(capsys, "evaluate", *arguments)


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    import jax

    from metaopt.checkpoint import save

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METAOPT_CHECKPOINTS", str(tmp_path / "own"))
    theta = families.build("hand", learning_rate=0.3).init(jax.random.key(0))
    return save("mine", "hand", {"learning_rate": 0.3}, theta, meta_trained_on=[], summary="a test")


def test_list_and_info(capsys, checkpoint):
    assert cli.main(["list"]) == 0
    assert "mine                     optimizer    hand         a test" in capsys.readouterr().out
    assert cli.main(["info", "mine"]) == 0
    assert json.loads(capsys.readouterr().out)["config"] == {"learning_rate": 0.3}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["velo_hyper_v2_fixed.ckpt"], "pass the option bugged_loss_features"),
        (["metamlp_seeded.safetensors", "--decays", "mul"], "did you mean 'mulo'?"),
        (
            ["metamlp_seeded.safetensors", "--variant", "elo"],
            "unknown option 'variant' (known: decays",
        ),
        (["absent.pt"], "cannot read"),
        (["celo.py"], "none of the files read here"),
    ],
)
def test_mistakes_in_importing(capsys, tmp_path, arguments, message):
    file, *options = arguments
    assert message in fails(capsys, "import", GOLDEN / file, "--as", tmp_path / "new" / "name", *options)
    assert not (tmp_path / "new").exists()


def test_import(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("METAOPT_CHECKPOINTS", str(tmp_path))
    options = ["--licence", "MIT", "--bugged-loss-features", "true", "--bugged-lstm-state", "false"]
    options += ["--relative", "true"]
    assert cli.main(["import", str(GOLDEN / "velo_hyper_v2_fixed.ckpt"), "--as", "velo", *options]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'velo'}\n"
    assert cli.main(["info", "velo"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    flags = {"bugged_loss_features": True, "bugged_lstm_state": False, "relative": True}
    assert manifest["config"] == {"hidden": 16, "bank": 8, **flags}
    assert manifest["licence"] == "MIT" and manifest["source"]["file"] == "velo_hyper_v2_fixed.ckpt"


def test_info_of_a_damaged_checkpoint_fails(capsys, checkpoint):
    (checkpoint / "weights.safetensors").write_bytes(b"")
    assert "damaged" in fails(capsys, "info", "mine")


def test_train_export_evaluate_report(capsys, tmp_path, monkeypatch):
    """The whole way, on quadratics."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METAOPT_CHECKPOINTS", str(tmp_path / "own"))
    # In this process the devices are already made; eight samples suit them.
    monkeypatch.setattr("meta_train.parallel.devices.make_cpu_devices", lambda num_samples, num_devices: None)
    changes = ["num_samples=8", "shortest=20", "longest=40", "outer_steps=20", "steps_per_dispatch=10", "save_every=10"]
    assert cli.main(["train", "quadratics", *changes]) == 0
    assert cli.main(["export", "runs/quadratics", "tuned"]) == 0
    refused = fails(capsys, "export", "runs/quadratics", "tuned", "--step", 10)
    assert f"there is a checkpoint {tmp_path / 'own' / 'tuned'} already: choose another name or" in refused
    assert cli.main(["export", "runs/quadratics", "tuned", "--step", "10", "--overwrite"]) == 0
    assert cli.main(["export", "runs/quadratics", "tuned", "--overwrite"]) == 0
    manifest = json.loads((tmp_path / "own" / "tuned" / "manifest.json").read_text())
    assert manifest["meta_trained_on"][0]["family"] == "quadratic"
    assert manifest["cost"]["outer_steps"] == 20 and manifest["cost"]["inner_steps"] == 20 * 2 * 8 * 10
    arguments = ["--suite", "quadratics", "--baselines", "sgdm", "--steps", "40", "--seeds", "2", "--draws", "2"]
    assert cli.main(["evaluate", "tuned", *arguments, "--record"]) == 0
    table = capsys.readouterr().out
    assert "quadratic #1" in table and "report: reports/tuned-quadratics/report.html" in table
    results = tmp_path / "reports" / "tuned-quadratics"
    page = (results / "report.html").read_text()
    (results / "report.html").unlink()
    assert cli.main(["report", str(results)]) == 0
    assert (results / "report.html").read_text() == page
    recorded = json.loads((tmp_path / "own" / "tuned" / "manifest.json").read_text())["results"]["quadratics"]
    assert recorded["num_problems"] == 2 and recorded["diverged"] == "0/4"
    assert set(recorded["tasks"]) == {"quadratic", "quadratic #1"}
    header = json.loads((results / "results.jsonl").read_text().splitlines()[0])
    assert header["novelty"] == {"tuned": {"quadratic": []}}  # of the meta-training distribution, said by code


def test_a_study_that_could_not_be_written_is_not_begun(capsys, tmp_path):
    (tmp_path / "file").touch()
    assert "choose another with --out" in fails(capsys, "estimator-study", "--out", tmp_path / "file" / "new")


def test_export_of_an_empty_folder(capsys, tmp_path):
    assert "holds no run" in fails(capsys, "export", tmp_path, "name")


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_says_what_it_is_for(name):
    assert recipes.find(name) and len(recipes.about(name)) > 20


def test_overrides_keep_the_rest():
    base = recipes.find("quadratics")
    changed = settings.override(base, ["sigma=1", "settings.learning_rate=0.5", "seed=3"])
    assert changed.estimator.sigma == 1.0 and changed.outer.seed == 3
    assert changed.family.settings == {"rule": "momentum", "learning_rate": 0.5}
    assert changed.outer.outer_steps == base.outer.outer_steps


def test_a_config_from_another_version_is_named():
    with pytest.raises(UserError, match="did you mean 'sigma'"):
        settings.from_json({"tasks": "digits", "estimator": {"sigmo": 1}})
