"""results.jsonl: an evaluation that is killed at any moment is continued, and nothing measured is replaced."""

import json

import jax
import optax
import pytest

import metaopt
from metaopt import checkpoint, families
from metaopt.errors import UserError
from metaopt.evaluation import compare, report, results
from metaopt.families import Baseline
from tasks import Quadratic

TASK = Quadratic(dim=3)
FEW = {"num_steps": 10, "seeds": 2, "tuning_seeds": 2, "draws": 2}
RATES = (0.01, 0.5, 100.0)


def sgd(rate, num_steps):
    return optax.sgd(rate)


def evaluate(folder, **changes):
    options = {"baselines": {"sgd": Baseline(sgd, RATES)}, **FEW, **changes}
    return metaopt.evaluate([folder.parent / "mine"], [TASK], out=folder, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An evaluation that nothing interrupted; its checkpoint is beside it."""
    folder = tmp_path_factory.mktemp("whole")
    theta = families.build("hand", rule="sgd", learning_rate=0.5).init(jax.random.key(0))
    checkpoint.save(folder / "mine", "hand", {"rule": "sgd"}, theta, meta_trained_on=[])
    evaluate(folder / "out")
    return folder / "out"


@pytest.fixture
def dispatches(monkeypatch):
    """The number of rates and of seeds of every program that is run."""
    done, build = [], compare.trainer

    def counted(*arguments):
        run = build(*arguments)

        def call(rates, problem_key, keys):
            done.append((len(rates), len(keys)))
            return run(rates, problem_key, keys)

        call.trace = run.trace
        return call

    monkeypatch.setattr(compare, "trainer", counted)
    return done


TUNE, REPORT = (3, 2), (1, 2)


# Lines: a header; of sgd two problems of three tuned rates and two reported seeds; of mine two of two seeds.
@pytest.mark.parametrize(
    "num_lines, half, expected",
    [
        (1, 0, [TUNE, REPORT, TUNE, REPORT, REPORT, REPORT]),
        (3, 20, [TUNE, REPORT, TUNE, REPORT, REPORT, REPORT]),  # half of a tuning is no tuning
        (4, 0, [REPORT, TUNE, REPORT, REPORT, REPORT]),
        (5, 1, [REPORT, TUNE, REPORT, REPORT, REPORT]),
        (11, 0, [REPORT, REPORT]),
        (14, 30, [REPORT]),
        (14, 1000, []),  # all but the last end of a line
        (15, 0, []),
    ],
)
def test_an_evaluation_killed_at_any_moment_ends_as_the_whole(whole, dispatches, num_lines, half, expected):
    lines = (whole / "results.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 15
    killed = whole.parent / f"killed-{num_lines}-{half}"
    killed.mkdir()
    (killed / "results.jsonl").write_text("".join(lines[:num_lines]) + "".join(lines[num_lines:])[:half])
    report.write(killed)
    rows = evaluate(killed)
    assert dispatches == expected
    assert (killed / "results.jsonl").read_bytes() == (whole / "results.jsonl").read_bytes()
    assert json.loads(json.dumps(rows)) == [json.loads(line) for line in lines[1:]]
    assert (killed / "report.html").read_bytes() == (whole / "report.html").read_bytes()


def test_a_report_says_what_is_missing(whole, tmp_path):
    lines = (whole / "results.jsonl").read_text().splitlines(keepends=True)
    expected = {1: "sgd on quadratic, mine on quadratic", 6: "sgd on quadratic #1, mine on quadratic"}
    for count in (1, 6, 13, 15):
        (tmp_path / "results.jsonl").write_text("".join(lines[:count]) + '{"phase": "rep')
        table, page = report.text_table(tmp_path), report.write(tmp_path).read_text()
        said = f"not finished, {2 if count < 11 else 1} of 2 are missing: {expected.get(count, 'mine on quadratic #1')}"
        assert (said in table) == (said in page) == (count < 15)
        assert table.count("\nquadratic") == {1: 0, 6: 1, 13: 2, 15: 2}[count]
        if count < 15:
            with pytest.raises(UserError, match="has no complete result to record: not finished"):
                report.result(tmp_path, "mine")


def test_results_of_another_evaluation_stay(whole):
    before = (whole / "results.jsonl").read_bytes()

    def twice(rate, num_steps):
        return optax.sgd(2 * rate)

    for changes, message in [
        ({"seeds": 3}, "seeds 2 and not 3"),
        ({"draws": 1}, "draws 2 and not 1"),
        ({"baselines": ["sgdm"]}, "reference sgd and not sgdm"),
        ({"baselines": {"sgd": Baseline(sgd, RATES[:2])}}, r"rates .*100.0\]} and not .*0.5\]}"),
        ({"baselines": {"sgd": Baseline(twice, RATES)}}, "programs .* and not"),  # a user's own code has changed
    ]:
        with pytest.raises(UserError, match=f"another evaluation than is asked for: {message}.*; choose another"):
            evaluate(whole, **changes)
    with pytest.raises(UserError, match="programs .* and not"):  # of the same name, and another problem
        metaopt.evaluate(
            [whole.parent / "mine"], [Quadratic(dim=4)], baselines={"sgd": Baseline(sgd, RATES)}, **FEW, out=whole
        )
    assert (whole / "results.jsonl").read_bytes() == before


def test_weights_that_have_changed_are_another_evaluation(whole, tmp_path):
    theta = families.build("hand", rule="sgd", learning_rate=0.4).init(jax.random.key(0))
    checkpoint.save(tmp_path / "mine", "hand", {"rule": "sgd"}, theta, meta_trained_on=[])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.jsonl").write_bytes((whole / "results.jsonl").read_bytes())
    with pytest.raises(UserError, match="weights_sha256 .* and not"):
        evaluate(tmp_path / "out")


def test_another_kind_of_device_is_noted(whole, tmp_path):
    header, *rows = [json.loads(line) for line in (whole / "results.jsonl").read_text().splitlines()]
    results.write(tmp_path, [header | {"device": "abacus"}, *rows[:5]])
    assert len(results.begin(tmp_path, header)) == 5
    assert results.read(tmp_path)[0]["device"] == f"abacus, {header['device']}"


HEADER = {"title": "", "learned": [], "reference": "a", "num_steps": 1, "seeds": 1, "novelty": {}}


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "its header lacks 'title'"),
        ('{"title": ', "line 1: "),
        ("[]", "its header lacks 'title'"),
        (json.dumps(HEADER) + "\n{half\n{}\n", "line 2: "),
        (json.dumps(HEADER) + '\n{"phase": "report"}\n', "line 2 is no row of an evaluation"),
        (json.dumps(HEADER) + '\n{"phase": []}\n', "line 2 is no row of an evaluation"),
        (json.dumps(HEADER) + "\n3\n", "line 2 is no row of an evaluation"),
        ("\xff", "line 1: "),
    ],
)
def test_damaged_results_are_named_and_stay(tmp_path, text, message):
    (tmp_path / "results.jsonl").write_text(text)
    with pytest.raises(UserError, match=f"results.jsonl is damaged: {message}.*; mend it, or move it away"):
        report.write(tmp_path)
    if text:
        with pytest.raises(UserError, match="is damaged"):
            results.begin(tmp_path, HEADER)
    assert (tmp_path / "results.jsonl").read_text() == text


def test_the_choice_of_a_rate_survives_a_file():
    rows = [
        {"rate": rate, "final_valid": final} for rate, final in zip(RATES, [[3, 1], [None, 0.5], [2, 2]], strict=True)
    ]
    assert compare._best_rate(json.loads(json.dumps(rows))) == 0.5  # lower medians: 1, 0.5, 2
    assert compare._best_rate([{"rate": 1.0, "final_valid": [None]}]) == 1.0
