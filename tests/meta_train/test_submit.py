"""What metaopt submit would tell sbatch, and what it refuses before a job waits for hours; no SLURM needed."""

import re
import shlex
from pathlib import Path

import pytest

from meta_train import cli, recipes, settings
from meta_train.cli import commands
from meta_train.cluster import submit, sweep
from meta_train.run import directory


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.executable", "/env/bin/python")
    return tmp_path


def dry_run(capsys, *words) -> list[list[str]]:
    """The words of the sbatch commands, without the script's folder; nothing was made."""
    before = sorted(Path().rglob("*"))
    at = words.index("--") if "--" in words else len(words)
    assert cli.main(["submit", *words[:at], "--dry-run", *words[at:]]) == 0
    assert sorted(Path().rglob("*")) == before
    lines = [line for line in capsys.readouterr().out.splitlines() if "sbatch" in line]
    commands = [shlex.split(line) for line in lines]
    assert all(command[:3] == ["METAOPT_PYTHON=/env/bin/python", "sbatch", "--parsable"] for command in commands)
    return [[Path(w).name if w.endswith(".sbatch") else w for w in command[3:]] for command in commands]


def fails(capsys, *words) -> str:
    assert cli.main(["submit", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("metaopt: ") and error.count("\n") == 1
    return error


def test_train(capsys):
    options = ["--partition=gpu", "--nodes=2", "--time=4:00:00"]
    (command,) = dry_run(capsys, "train", "digits-quick", "--dir", "runs/a", "outer_steps=500", "--", *options)
    log = ["--job-name=a", "--output=runs/a.%j.log"]
    assert command == [*log, *options, "meta_train.sbatch", "runs/a", "digits-quick", "outer_steps=500"]
    (command,) = dry_run(capsys, "train", "digits-quick", "--dir", "runs/a", "--log", "wandb")
    assert command == [*log, "meta_train.sbatch", "runs/a", "digits-quick", "--log", "wandb"]


def test_the_commands_of_the_readme():
    lines = re.findall(r"^metaopt (submit .+)", (submit.scripts() / "README.md").read_text(), re.MULTILINE)
    works = [cli.parse(shlex.split(line)) for line in lines]
    assert {work.run for work in works} == {
        commands.run_submit_train,
        commands.run_submit_sweep,
        commands.run_submit_evaluate,
    }
    for work in works:
        if "settings" in work and not getattr(work, "resume", None):
            sweep.plan([*([work.recipe] if "recipe" in work else []), *work.settings], Path("s"))


def test_the_scripts_are_there():
    names = {path.name for path in submit.scripts().iterdir()}
    assert {"meta_train.sbatch", "sweep.sbatch", "evaluate_array.sbatch", "merge.sbatch", "requeue.sh"} <= names


def begin(folder: Path, *changes: str) -> None:
    recipe = settings.override(recipes.find("quadratics"), list(changes))
    directory.make(recipe, "optimizer", folder)


def test_a_run_is_continued(capsys):
    begin(Path("runs/a"), "sigma=0.2")
    (command,) = dry_run(capsys, "train", "--resume", "runs/a")
    assert command[2:] == ["meta_train.sbatch", "runs/a"]
    (command,) = dry_run(capsys, "train", "quadratics", "sigma=0.2", "--dir", "runs/a")
    assert command[2:] == ["meta_train.sbatch", "runs/a", "quadratics", "sigma=0.2"]
    assert "runs/a is a run of another recipe" in fails(capsys, "train", "quadratics", "--dir", "runs/a")


def test_sweep(capsys):
    words = ["quadratics", "digits-quick", "sigma=0.01,0.03", "outer_steps=500"]
    (command,) = dry_run(capsys, "sweep", *words, "--dir", "s%s", "--at-once", "2")
    log = ["--job-name=s%s", "--output=s%%s/logs/%A_%a.log"]  # what SLURM is not to fill in
    assert command == [*log, "--array=0-3%2", "sweep.sbatch", "s%s/sweep.tsv"]
    runs = sweep.plan(words, Path("s"))
    assert [str(r.folder) for r in runs] == [
        "s/quadratics,sigma=0.01",
        "s/quadratics,sigma=0.03",
        "s/digits-quick,sigma=0.01",
        "s/digits-quick,sigma=0.03",
    ]
    assert runs[1].line() == "s/quadratics,sigma=0.03\tquadratics\tsigma=0.03\touter_steps=500"


@pytest.mark.parametrize(
    "values, settings",
    [
        ("(1,2),(3,4)", ["(1,2)", "(3,4)"]),
        ("'a,b',c", ["a,b", "c"]),
        ("'a','b'", ["'a'", "'b'"]),
        ("x(", ["x("]),
    ],
)
def test_commas_inside_a_value(values, settings):
    runs = sweep.plan(["quadratics", f"start={values}"], Path("s"))
    assert [r.settings for r in runs] == [(f"start={value}",) for value in settings]


def test_the_table_of_another_sweep_is_kept():
    table = sweep.write(sweep.plan(["quadratics", "seed=0,1"], Path("s")), Path("s"))
    before = table.read_text()
    assert before.splitlines()[1] == "s/quadratics,seed=1\tquadratics\tseed=1"
    sweep.write(sweep.plan(["quadratics", "seed=0,1"], Path("s")), Path("s"))  # the same again
    with pytest.raises(submit.UserError, match="of another sweep"):
        sweep.write(sweep.plan(["quadratics", "seed=0,2"], Path("s")), Path("s"))
    assert table.read_text() == before


def test_evaluate(capsys):
    options = ["--suite", "quadratics", "--baselines", "adamw", "--draws", "3", "--out", "r"]
    shards, merge = dry_run(capsys, "evaluate", "small-fc-images", *options, "--", "-p", "long")
    log = ["--job-name=r", "--output=r/logs/%A_%a.log"]
    script = shards.index("evaluate_array.sbatch")
    assert shards[:script] == [*log, "--array=0-5", "-p", "long"]  # 2 methods x 3 draws
    # What the array computes is what was asked for.
    told, asked = (
        commands.evaluation(cli.parse(["evaluate", *w])) for w in (shards[script + 1 :], ["small-fc-images", *options])
    )
    assert told == asked
    log = ["--job-name=r", "--output=r/logs/merge_%j.log"]
    assert merge == [*log, "--dependency=afterany:JOB", "-p", "long", "merge.sbatch", "r"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["train", "digits-quik"], "did you mean 'digits-quick'?"),
        (["train", "quadratics", "sigm=1"], "did you mean 'sigma'?"),
        (["train", "quadratics", "settings.rul=sgd"], "did you mean 'rule'?"),
        (["train"], "name a recipe ("),
        (["train", "--resume", "nowhere"], "nowhere holds no run"),
        (["train", "quadratics", "--dir", "full"], "run directory full is not empty: choose another"),
        (["train", "quadratics", "--", "--array=0-3"], "limit how many run at once with --at-once"),
        (["train", "quadratics"], "sbatch is not on the PATH"),
        (["sweep", "seed=0,1", "--dir", "s"], "name the recipes of the sweep"),
        (
            ["sweep", "quadratics", "sigma=0.1,1e-1", "--dir", "s"],
            "twice: quadratics sigma=0.1 and quadratics sigma=1e-1",
        ),
        (["sweep", "quadratics", "quadratics", "--dir", "s"], "twice: quadratics and quadratics"),
        (["sweep", "quadratics", "seed=0", "seed=1", "--dir", "s"], "write all its values as seed=value,value"),
        (["sweep", "quadratics", "seed=0,", "--dir", "s"], "seed=0, has an empty value"),
        (["sweep", "quadratics", "digits-quick", "seed=0,1", "hidden=8", "--dir", "s"], "unknown setting 'hidden'"),
        (["sweep", "quadratics", "seed=0,1", "sigma=0.1,-1.0", "--dir", "s"], "sigma must not be negative, got -1.0"),
        (["sweep", "quadratics", "--dir", "s", "--at-once", "0"], "--at-once must be at least 1, got 0"),
        (["evaluate", "small-fc-image"], "did you mean 'small-fc-images'?"),
        (["evaluate", "small-fc-images", "--baselines", "adam"], "did you mean 'adamw'?"),
    ],
)
def test_mistakes(capsys, here, monkeypatch, words, message):
    monkeypatch.setenv("PATH", "")
    (here / "full").mkdir()
    (here / "full" / "thesis.tex").touch()
    before = sorted(here.rglob("*"))
    assert message in fails(capsys, *words)
    if words != ["train", "quadratics"]:
        assert sorted(here.rglob("*")) == before


def test_what_sbatch_refuses_is_said(capsys, here, monkeypatch):
    (here / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpu' >&2\nexit 1\n")
    (here / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(here), prepend=":")
    assert "sbatch refused: sbatch: error: invalid partition specified: gpu" in fails(capsys, "train", "quadratics")


def test_only_submit_takes_options_behind_dashes(capsys):
    with pytest.raises(SystemExit):
        cli.main(["info", "small-fc-images", "--", "--partition=gpu"])
    assert "only submit takes options, those of sbatch, behind --" in capsys.readouterr().err
