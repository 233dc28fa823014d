"""The command line: what it prints, and one clear line for every mistake."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
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
        (["quadratics", "--devices", "0"], "--devices must be at least 1, got 0"),
        (["quadratics", "--devices", "-1"], "--devices must be at least 1, got -1"),
        (["quadratics", "--devices", str(10**12)], f"multiple of the {10**12} devices, got 16"),
        (["quadratics", "settings.learning_rate=1e400"], "learning_rate must be finite and below 3.4e+38, got inf"),
        (["quadratics", "settings.fixed=(1.0,-1e400)"], "settings.fixed must be finite and below 3.4e+38, got -inf"),
        (["quadratics", "sigma=1e400"], "sigma must be finite and below 3.4e+38, got inf"),
        (["quadratics", "sigma=1e39"], "sigma must be finite and below 3.4e+38, got 1e+39"),
        (["quadratics", f"sigma={10**400}"], "sigma must be finite and below 3.4e+38, got inf"),
        (["quadratics", "sigma=nan"], "sigma takes float, got 'nan'"),
        (["quadratics", "learning_rate=-1"], "learning_rate and clip must be above 0"),
        (["quadratics", f"outer_steps={10**12}"], "outer_steps must be below 2^31, got 1000000000000"),
        (["quadratics", f"num_samples={2**31}"], "num_samples must be below 2^31, got 2147483648"),
        (["quadratics", f"growth={10**12}"], "growth must be below 2^31"),
        (["quadratics", "growth=-1"], "growth is a number of outer steps, got -1"),
        (["quadratics", f"longest={2**30}"], "longest must be at most 2^29 inner steps"),
        (["quadratics", "at_once=-1"], "at_once must not be negative, got -1"),
        (["quadratics", "save_every=0"], "save_every must be at least 1, got 0"),
        (["quadratics", "warmup=-1"], "need 0 <= warmup < outer_steps, got -1"),
        (["quadratics", "family=small_fc", f"settings.hidden={10**6}", "--devices", "8"], "theta would have 1,0"),
        (
            ["quadratics", "family=small_fc", f"settings.hidden={10**12}"],
            "settings.hidden must be below 2^31, got 1000000000000",
        ),
        (["quadratics", "estimator=gpes", f"options.windows_per_draw={10**12}"], "must be below 2^31"),
        (["quadratics", "--devices", "8", "--dir", "x" * 260], "File name too long"),
        (["--resume", "x" * 260], "File name too long"),
        ([f"./{'x' * 260}.py"], "File name too long"),
        (["y" * 260], "unknown recipe"),
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
        (["mine", "--draws", "-1"], "at least 1"),
        (["mine", "--steps", "0"], "at least 1"),
        (
            ["mine", "--steps", str(2**31)],
            "num_steps of an evaluation must be at most 1,073,741,824, got 2,147,483,648",
        ),
        (["mine", "--seeds", str(10**20)], "seeds of an evaluation must be at most 10,000"),
        (["mine", "--block", "-1"], "a block must be at least 1 draw, got -1"),
        (["mine", "--out", "x" * 260], "cannot write results to xxx"),
        (["./" + "x" * 260], "File name too long"),
    ],
)
def test_mistakes_in_evaluation(capsys, checkpoint, arguments, message):
    assert message in fails(capsys, "evaluate", *arguments)


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
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
        (["metamlp_seeded.safetensors", "--decays", "mulo", "--step-multiplier", "nan"], "must be finite and below"),
        (["metamlp_seeded.safetensors", "--decays", "mulo", "--step-multiplier", "-1"], "must be at least 0, got -1"),
        (["metamlp_seeded.safetensors", "--num-epochs", "0"], "--num-epochs must be at least 1, got 0"),
        (["metamlp_seeded.safetensors", "--num-minibatches", str(10**12)], "--num-minibatches must be below 2^31"),
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


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", "x" * 260], ["merge", "x" * 260], ["info", "./" + "x" * 260], ["export", "x" * 260, "name"],
        ["estimator-study", "--out", "x" * 260], ["coord-check", "--out", "x" * 260],
        ["submit", "train", "quadratics", "--dir", "x" * 260],
        ["submit", "sweep", "quadratics", "seed=1,2", "--dir", "x" * 260],
    ],
)  # fmt: skip
def test_very_long_names_are_one_line(capsys, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    assert "xxx" in fails(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_word_that_is_not_understood_is_one_line(capsys):
    for words, message in [
        (
            ["train", "quadratics", "--devices", "two"],
            "argument --devices: invalid int value: 'two'; see metaopt train --help",
        ),
        (["trian"], "invalid choice: 'trian'"),
        ([], "the following arguments are required: COMMAND; see metaopt --help"),
    ]:
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        error = capsys.readouterr().err
        assert ended.value.code == 2 and error.startswith("metaopt: ") and error.count("\n") == 1 and message in error


@pytest.mark.parametrize("words", [["recipes"], ["--help"], ["list", "--markdown"]])
def test_output_that_is_full_or_that_nobody_reads(capsys, monkeypatch, words):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert "cannot write to standard output: No space left on device" in fails(capsys, *words)
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "w") as unread:
        monkeypatch.setattr("sys.stdout", unread)
        assert cli.main(words) == 128 + signal.SIGPIPE
    monkeypatch.setattr("sys.stdout", None)  # as it is where a shell has closed it
    monkeypatch.setattr("sys.stderr", open("/dev/full", "w"))
    assert cli.main(["recipes"]) == 0 and cli.main(["info", "nothing"]) == 2
    assert capsys.readouterr() == ("", "")


def test_letters_that_an_encoding_lacks_are_escaped(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, "ascii"))
    monkeypatch.setattr(recipes, "names", lambda: ["\u00fcben"])
    monkeypatch.setattr(recipes, "about", lambda name: "\udcff")
    assert cli.main(["recipes"]) == 0
    assert written.getvalue() == rb"\xfcben" + b" " * 21 + rb"\udcff" + b"\n"


def test_where_memory_does_not_suffice(capsys, monkeypatch):
    def run(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.")

    monkeypatch.setattr(recipes, "names", run)
    assert "the memory does not suffice" in fails(capsys, "recipes")


def test_an_error_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(recipes, "names", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["recipes"])


COMPARED = ["--suite", "quadratics", "--baselines", "sgdm", "--steps", "20", "--seeds", "1", "--draws", "3"]


def test_ctrl_c_is_one_line_and_the_same_command_continues(capsys, checkpoint):
    command = [sys.executable, "-m", "meta_train.cli", "evaluate", "mine", *COMPARED, "--out"]
    tree = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}
    started = subprocess.Popen([*command, "half"], env=tree, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    importing = subprocess.Popen([*command, "none"], env=tree, stderr=subprocess.PIPE, text=True)
    results = Path("half/results.jsonl")
    time.sleep(0.3)
    importing.send_signal(signal.SIGINT)
    assert (importing.communicate()[1], importing.returncode) == ("metaopt: interrupted\n", 130)
    while started.poll() is None and not (results.exists() and results.read_text().count("\n") > 1):
        time.sleep(0.005)
    started.send_signal(signal.SIGINT)
    assert (
        started.communicate()[1]
        == "metaopt: interrupted; what is measured is in half, and the same command continues\n"
    )
    assert started.returncode == 130
    left = results.read_text()
    assert cli.main(["report", "half"]) == 0
    assert "not finished, " in capsys.readouterr().out
    assert cli.main(["evaluate", "mine", *COMPARED, "--out", "half"]) == 0
    assert cli.main(["evaluate", "mine", *COMPARED, "--out", "whole"]) == 0
    assert results.read_text() == Path("whole/results.jsonl").read_text()
    assert results.read_text().startswith(left[: left.rindex("\n")])
    assert "seeds 1 and not 2" in fails(capsys, "evaluate", "mine", *COMPARED, "--seeds", "2", "--out", "half")
    assert cli.main(["evaluate", "mine", *COMPARED, "--out", "half"]) == 0
    assert "[1/" not in capsys.readouterr().out  # nothing was left to do


def test_a_keyboard_interrupt_is_one_line(capsys, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "names", interrupted)
    assert cli.main(["recipes"]) == 130
    assert capsys.readouterr().err == "metaopt: interrupted\n"


def test_without_utf8_a_folder_of_any_name_works_or_is_one_line(checkpoint):
    theirs = shutil.copytree(checkpoint, checkpoint.parent / "k\u00fcche")
    environ = {k: v for k, v in os.environ.items() if k != "LANG"} | {
        "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    code = (
        "import sys; from meta_train.cli import main; folder, out = sys.argv[1:]; "
        "print([main(words) for words in (['train', 'quadratics', '--dir', out + 'run'], "
        f"['evaluate', folder, *{COMPARED}, '--out', out], ['report', out])])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, theirs, theirs.with_name("\u00fcber")], env=environ, capture_output=True, text=True
    )
    assert done.stdout.endswith("[2, 0, 0]\n"), done.stderr
    assert "k\\xfcche valid" in done.stdout and r"\udcc3\udcbcber/report.html" in done.stdout
    assert (
        done.stderr.count("\n") == 1 and "Python cannot read with the encoding ascii: set PYTHONUTF8=1" in done.stderr
    )
    assert "k\u00fcche" in (theirs.with_name("\u00fcber") / "report.html").read_text(encoding="utf-8")


def test_what_cannot_be_recorded_is_refused_before_the_work(capsys, checkpoint, monkeypatch):
    arguments = ["evaluate", "mine", *COMPARED, "--record"]
    with monkeypatch.context() as patch:  # asked of the system, not tried by chmod: root may write anywhere
        patch.setattr(os, "access", lambda path, mode: not str(path).endswith("manifest.json"))
        assert "manifest.json is not yours to write: leave out --record, or copy" in fails(capsys, *arguments)
    with monkeypatch.context() as patch:  # that of a wheel
        (checkpoint.parent / "metaopt").mkdir()
        checkpoint.parent.joinpath("metaopt", "checkpoints").symlink_to(checkpoint.parent)
        patch.setenv("METAOPT_CHECKPOINTS", str(checkpoint.parent / "metaopt" / "checkpoints"))
        patch.setattr("metaopt.__file__", str(checkpoint.parent / "metaopt" / "__init__.py"))
        assert "is not yours to write" in fails(capsys, *arguments)
    assert "results" not in json.loads((checkpoint / "manifest.json").read_text())


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
