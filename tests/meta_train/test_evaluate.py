"""An evaluation in shards: the same results, and one clear line for what is amiss."""

import dataclasses
import json
import shutil

import jax
import pytest

from meta_train import cli
from meta_train.cli import commands
from meta_train.evaluation import evaluate
from meta_train.evaluation.evaluate import Request
from meta_train.evaluation.merge import merge
from metaopt import checkpoint, families
from metaopt.errors import UserError
from metaopt.evaluation import compare
from metaopt.evaluation.comparison import Shard

OPTIONS = ["--suite", "quadratics", "--baselines", "sgdm", "--steps", "40", "--seeds", "2", "--draws", "3"]
REQUEST = Request(
    ("mine",), "quadratics", ("sgdm",), compare.Settings(num_steps=40, seeds=2, draws=3), only=("quadratic",), block=2
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a checkpoint, its evaluation in ``whole`` and all four shards of it in ``split``."""
    folder = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METAOPT_CHECKPOINTS", str(folder))
        save(0.3)
        evaluate.evaluate(REQUEST, folder / "whole")
        for index in reversed(range(4)):  # in any order, as a job array makes them
            evaluate.evaluate_shard(REQUEST, folder / "split", index)
    return folder


@pytest.fixture(autouse=True)
def here(home, monkeypatch):
    monkeypatch.setenv("METAOPT_CHECKPOINTS", str(home))


def save(rate):
    theta = families.build("hand", learning_rate=rate).init(jax.random.key(0))
    checkpoint.save("mine", "hand", {"learning_rate": rate}, theta, overwrite=True, meta_trained_on=[])


@pytest.fixture
def shards(home, tmp_path):
    return shutil.copytree(home / "split", tmp_path / "split")


def edit(path, **changes):
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(header) | changes), *rows]) + "\n")


def test_the_plan_covers_every_problem_once_in_the_order_of_the_results(home):
    assert evaluate.shards(REQUEST) == [
        Shard("quadratic", "sgdm", range(0, 2)),
        Shard("quadratic", "sgdm", range(2, 3)),
        Shard("quadratic", "mine", range(0, 2)),
        Shard("quadratic", "mine", range(2, 3)),
    ]
    rows = [json.loads(row) for row in (home / "whole" / "results.jsonl").read_text().splitlines()[1:]]
    reported = [(row["task"], row["method"], row["draw"]) for row in rows if row["phase"] == "report"]
    planned = [(p.task, p.method, draw) for p in evaluate.shards(REQUEST) for draw in p.draws]
    assert reported == [problem for problem in planned for _ in range(2)]  # two seeds


def test_merged_shards_are_the_whole(home, shards):
    assert merge(shards) == ["mine"]
    assert (shards / "results.jsonl").read_bytes() == (home / "whole" / "results.jsonl").read_bytes()
    evaluate.evaluate_shard(REQUEST, shards, 1)  # a requeued index
    merge(shards)
    assert (shards / "results.jsonl").read_bytes() == (home / "whole" / "results.jsonl").read_bytes()
    assert sorted(path.name for path in (shards / "shards").iterdir()) == [f"{i}.jsonl" for i in range(4)]


def test_a_shard_is_computed_once_and_not_replaced_by_that_of_another_evaluation(capsys, shards):
    path = shards / "shards" / "1.jsonl"
    before = path.read_bytes()
    evaluate.evaluate_shard(REQUEST, shards, 1)
    assert capsys.readouterr().out == "shard 1 of 0 to 3 is there already\n"
    other = dataclasses.replace(REQUEST, settings=compare.Settings(num_steps=20, seeds=2, draws=3))
    with pytest.raises(UserError, match="1.jsonl is of another evaluation than is asked for: num_steps 40 and not 20"):
        evaluate.evaluate_shard(other, shards, 1)
    assert path.read_bytes() == before
    for damaged in (before[:-10], b"", b"[]", b"{}"):
        path.write_bytes(damaged)
        evaluate.evaluate_shard(REQUEST, shards, 1)
        assert path.read_bytes() == before


def test_merged_shards_do_not_replace_the_results_of_another_evaluation(home, shards):
    header, *rows = (home / "whole" / "results.jsonl").read_text().splitlines()
    text = "\n".join([json.dumps(json.loads(header) | {"seeds": 5}), *rows]) + "\n"
    (shards / "results.jsonl").write_text(text)
    with pytest.raises(UserError, match="another evaluation than is asked for: seeds 5 and not 2; choose another"):
        merge(shards)
    assert (shards / "results.jsonl").read_text() == text


def test_a_run_that_has_gone_on_is_another_evaluation():
    thetas = [{"a": jax.numpy.float32(x), "b": jax.numpy.zeros(2)} for x in (1.0, 2.0)]
    assert len({evaluate._digest(theta) for theta in thetas}) == 2


def test_missing_shards_are_named_with_the_command_that_makes_them(capsys, shards):
    for index in (1, 3):
        (shards / "shards" / f"{index}.jsonl").unlink()
    with pytest.raises(
        UserError, match=r"lacks 2 of 4 shards: make I=1,3 with: metaopt (evaluate .*) --shard I"
    ) as error:
        merge(shards)
    assert not (shards / "results.jsonl").exists()
    command = str(error.value).partition("with: metaopt ")[2]
    for index in (1, 3):
        assert cli.main(command.replace("--shard I", f"--shard {index}").split()) == 0
    capsys.readouterr()
    merge(shards)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_steps": 60}, "shards/2.jsonl is of another evaluation than .*/0.jsonl: num_steps 60 and not 40"),
        ({"weights_sha256": {"mine": "beef"}}, "another evaluation .*: weights_sha256 .*beef"),
        ({"of": 8}, "another evaluation .*: of 8 and not 4"),
    ],
)
def test_shards_of_another_evaluation_are_named(shards, changes, message):
    edit(shards / "shards" / "2.jsonl", **changes)
    with pytest.raises(UserError, match=message):
        merge(shards)
    assert not (shards / "results.jsonl").exists()


def test_shards_may_come_from_several_kinds_of_device(shards):
    edit(shards / "shards" / "2.jsonl", device="abacus")
    merge(shards)
    device = jax.devices()[0].device_kind
    header = json.loads((shards / "results.jsonl").read_text().splitlines()[0])
    assert header["device"] == f"abacus, {device}"


@pytest.mark.parametrize("text", ["", "{", "{}"])
def test_a_damaged_shard_is_named(shards, text):
    (shards / "shards" / "2.jsonl").write_text(text)
    with pytest.raises(UserError, match="shards/2.jsonl is damaged: .*; make this shard again"):
        merge(shards)


def test_a_folder_without_shards_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no shards: make them with metaopt evaluate NAME --out"):
        merge(tmp_path)


def test_a_shard_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_):
        yield {"phase": "report"}
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate.evaluate_shard(REQUEST, tmp_path, 0)
    assert list((tmp_path / "shards").iterdir()) == []


@pytest.mark.parametrize(
    "extra, message",
    [
        (["--shard", "6"], "there is no shard 6: this evaluation has the shards 0 to 5"),
        (["--shard", "-1"], "there is no shard -1"),
        (["--shard", "0", "--record"], "leave --record to metaopt merge"),
        (["--shard", "0", "--block", "0"], "a block must be at least 1 draw, got 0"),
        (["--shard", "0", "--out", "file"], "cannot write results to file/shards: Not a directory"),
    ],
)
def test_mistakes_in_shards(capsys, tmp_path, monkeypatch, extra, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert cli.main(["evaluate", "mine", *OPTIONS, *extra]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_merged_result_is_recorded_unless_the_weights_have_changed(capsys, shards):
    assert cli.main(["merge", str(shards), "--record"]) == 0
    assert f"report: {shards / 'report.html'}" in capsys.readouterr().out
    assert checkpoint.read_manifest("mine")["results"]["quadratics"]["num_problems"] == 3
    save(0.2)
    assert cli.main(["merge", str(shards), "--record"]) == 2
    assert "is of other weights than mine has now" in capsys.readouterr().err
    assert "results" not in checkpoint.read_manifest("mine")
    save(0.3)


def test_the_options_of_a_request_ask_for_it_again():
    for request in (REQUEST, dataclasses.replace(REQUEST, only=None, baselines=("lion", "adamw"))):
        again, _ = commands.evaluation(cli.parse(["evaluate", *request.options()]))
        assert again == request
