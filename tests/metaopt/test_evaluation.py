"""The comparison: fair, arithmetic that can be checked by hand, and several algorithms in one table."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metaopt
from metaopt import checkpoint, families
from metaopt.core import Learned
from metaopt.errors import UserError
from metaopt.evaluation import compare, heldout, plots, report, statistics, summary, targets
from metaopt.evaluation.run import trainer
from metaopt.families import Baseline
from metaopt.optimizers import baselines
from tasks import Lasso, Quadratic

TASK = Quadratic(dim=3, condition=10.0)
SETTINGS = compare.Settings(num_steps=40, every=10, seeds=3, tuning_seeds=2)


def learned(name, rate):
    return compare.learned(name, "optimizer", lambda num_steps: optax.sgd(rate))


def rows_of(*methods):
    return [row for method in methods for row in compare.measure(TASK, method, SETTINGS, range(SETTINGS.draws))]


def test_a_run_is_the_plain_loop():
    run = trainer(TASK, lambda rate: optax.sgd(rate), num_steps=20, every=5)
    seeds = jax.random.split(jax.random.key(2), 2)
    curves = run(jnp.array([0.1, 0.5]), jax.random.key(3), seeds)
    assert curves.valid.shape == (2, 2, 5)
    quadric = TASK.sample(jax.random.key(3))
    for r, rate in enumerate((0.1, 0.5)):
        x = TASK.init(quadric, jax.random.split(seeds[1])[0])["x"]
        for point in range(5):
            expected = 0.5 * (x - quadric.optimum) @ quadric.hessian @ (x - quadric.optimum) / 3
            np.testing.assert_allclose(curves.valid[r, 1, point], expected, rtol=1e-3, atol=1e-9)
            for _ in range(5):
                x = x - rate * quadric.hessian @ (x - quadric.optimum) / 3


def test_an_optimizer_may_take_the_gradient_itself():
    def update(grads, state, params, *, value_fn, **others):
        del grads
        return jax.tree.map(lambda g: -0.1 * g, jax.grad(value_fn)(params)), state

    twice = lambda rate: optax.GradientTransformationExtraArgs(lambda params: (), update)
    keys = jax.random.split(jax.random.key(2), 1)
    noisy = Quadratic(dim=3, noise=1.0)  # which tells whether it is the same batch
    curves = [trainer(noisy, make, 4, 1)(jnp.full(1, 0.1), jax.random.key(3), keys) for make in (twice, optax.sgd)]
    np.testing.assert_allclose(curves[0].valid, curves[1].valid, rtol=1e-6)


def test_the_best_rate_is_chosen_on_tuning_seeds_and_divergence_loses():
    rows = rows_of(compare.Method("sgd", "optimizer", lambda rate, num_steps: optax.sgd(rate), (1e-3, 1.0, 1e4)))
    tuning = {row["rate"]: row["final_valid"] for row in rows if row["phase"] == "tuning"}
    assert tuning[1e4] == [None, None] and max(tuning[1.0]) < min(tuning[1e-3])
    reported = [row for row in rows if row["phase"] == "report"]
    assert [row["seed"] for row in reported] == [0, 1, 2]
    assert all(row["rate"] == 1.0 and not row["rate_at_edge"] and not row["diverged"] for row in reported)


def test_all_methods_start_from_the_same_parameters():
    rows = rows_of(learned("a", 0.1), learned("b", 1.0))
    starts = {name: [row["valid"][0] for row in rows if row["method"] == name] for name in "ab"}
    assert starts["a"] == starts["b"] and len(set(starts["a"])) == 3


def test_a_diverged_run_is_kept_and_counted():
    rows = json.loads(json.dumps(rows_of(learned("good", 1.0), learned("bad", 1e6))))
    cells = summary.summarize(rows, "good", SETTINGS.num_steps)[("quadratic", 0)]
    assert cells["bad"].diverged == cells["bad"].num_seeds == 3 and cells["good"].diverged == 0
    assert cells["bad"].valid[0] == np.inf and np.isinf(cells["bad"].ratios[1.0]).all()
    claims = summary.claims({("quadratic", 0): cells}, "bad", "good")
    assert claims["diverged"] == "3/3" and claims["final_valid_not_worse"] == "0/1"
    assert claims["steps_ratio_100%"]["median"] is None


def test_steps_to_a_target_by_hand():
    steps = np.array([0, 10, 20, 30])
    losses = np.array([[5, 1, 5, 1], [5, 4, 1, 1], [5, 4, 3, 3], [np.nan, np.nan, 1, np.nan], [1, 1, 9, 9]], float)
    # A lucky crossing is not enough; the last evaluation has nothing behind it.
    np.testing.assert_array_equal(targets.steps_to(losses, steps, 2.0), [30, 20, np.inf, np.inf, 0])


def test_ratios_are_against_the_reference_at_the_same_fraction():
    row = lambda name, valid: {
        "phase": "report", "task": "t", "draw": 0, "method": name, "rate": None, "rate_at_edge": False,
        "seed": 0, "diverged": False, "train": valid, "valid": valid, "test": valid[-1],
    }  # fmt: skip
    rows = [row("ref", [8.0, 4.0, 3.0, 2.0, 1.0]), row("fast", [8.0, 1.0, 0.5, 0.5, 0.5])]
    cells = summary.summarize(rows, "ref", 400)[("t", 0)]
    assert cells["fast"].ratios[0.25] == [1.0] and cells["fast"].ratios[1.0] == [0.25]
    assert cells["ref"].ratios[1.0] == [1.0]


def test_bootstrap_of_a_known_distribution():
    values = np.random.default_rng(1).normal(3.0, 1.0, 400)
    low, high = statistics.bootstrap(values)
    # The median of n normal values has standard error 1.25 / sqrt(n).
    assert low < np.median(values) < high
    np.testing.assert_allclose(high - low, 2 * 1.96 * 1.2533 / 20, rtol=0.35)


def test_the_lower_median_survives_infinities():
    assert statistics.median(np.array([1.0, 2.0, np.inf, np.inf])) == 2.0
    assert statistics.median(np.array([1.0, np.inf, np.inf])) == np.inf
    low, high = statistics.bootstrap(np.array([1.0, 1.0, np.inf]))
    assert low == 1.0 and high == np.inf


def test_an_interval_over_tasks_is_wider_than_over_seeds():
    runs = [np.full(10, task) for task in (0.1, 0.5, 2.0)]
    low, high = statistics.bootstrap_tasks(runs, lambda m: float(statistics.median(m)))
    assert low == 0.1 and high == 2.0


MLP = {"family": "mlp", "datasets": ["digits"], "architecture": {"side": [8, 8], "width": [8, 32]}}


@pytest.mark.parametrize(
    "change, expected",
    [
        ({}, ()),
        ({"architecture": {"side": [8, 8], "width": [16, 16]}}, ()),
        ({"datasets": ["mnist5k"]}, ("dataset",)),
        ({"architecture": {"side": [8, 8], "width": [64, 64]}}, ("architecture",)),
        ({"datasets": ["mnist5k"], "architecture": {"side": [28, 28], "width": [8, 8]}}, ("dataset", "architecture")),
        ({"family": "conv"}, ("family",)),
    ],
)
def test_novelty_is_decided_by_code(change, expected):
    assert heldout.novelty(MLP | change, [MLP]) == expected
    assert heldout.novelty(MLP | change, None) == ("unknown",)


def test_every_baseline_has_nine_rates_or_more_and_trains():
    for baseline in baselines.BASELINES.values():
        assert len(baseline.rates) >= 9
        ratios = np.array(baseline.rates[1:]) / np.array(baseline.rates[:-1])
        np.testing.assert_allclose(ratios, 10**0.5, rtol=0.01)
        run = trainer(TASK, lambda rate, b=baseline: b.make(rate, 40), 40, 40)
        curves = run(jnp.array(baseline.rates), jax.random.key(0), jax.random.split(jax.random.key(1), 1))
        assert np.nanmin(curves.valid[:, 0, -1]) < 0.5 * curves.valid[0, 0, 0]


def write_results(folder):
    adamw = compare.learned("adamw", "optimizer", lambda num_steps: optax.adamw(0.1))
    header = {
        "title": "mine on <test>", "learned": ["mine"], "reference": "adamw", "num_steps": 40, "seeds": 3,
        "novelty": {"mine": {"quadratic": ["family"]}},
    }  # fmt: skip
    rows = [header, *rows_of(adamw, learned("mine", 1.0))]
    (folder / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def test_the_report_is_one_file_redrawn_the_same_from_results(tmp_path):
    write_results(tmp_path)
    page = report.write(tmp_path).read_text()
    assert page.count("<svg") == 1 and "mine on &lt;test&gt;" in page
    assert 'href="http' not in page and "src=" not in page and "<script" not in page  # nothing from outside
    assert report.write(tmp_path).read_text() == page
    assert "quadratic" in report.text_table(tmp_path) and "family" in report.text_table(tmp_path)


def test_results_that_are_missing_or_damaged_are_named(tmp_path):
    with pytest.raises(UserError, match="results.jsonl is missing"):
        report.write(tmp_path)
    (tmp_path / "results.jsonl").write_text('{"title": ')
    with pytest.raises(UserError, match="is damaged"):
        report.write(tmp_path)


@pytest.mark.parametrize("bad", [{"seeds": 0}, {"num_steps": 30, "every": 20}, {"num_steps": 0}, {"draws": -1}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(UserError, match="must be at least 1, got|steps must be a multiple of 20, got 30"):
        compare.Settings(**bad)


@pytest.mark.parametrize("num_steps, every", [(1, 1), (7, 7), (20, 20), (40, 20)])
def test_a_run_of_few_steps_is_measured_at_its_ends(num_steps, every):
    settings = compare.Settings(num_steps=num_steps, seeds=1)
    assert settings.every == every
    (row,) = compare.measure(TASK, learned("sgd", 0.5), settings, range(1))
    assert len(row["valid"]) == num_steps // every + 1


def save(folder, name, rate, **about):
    """A checkpoint of SGD at one rate."""
    theta = families.build("hand", rule="sgd", learning_rate=rate).init(jax.random.key(0))
    return checkpoint.save(folder / name, "hand", {"rule": "sgd"}, theta, **about)


FEW = {"num_steps": 10, "seeds": 2, "tuning_seeds": 2}
SGD = {"sgd": Baseline(lambda rate, num_steps: optax.sgd(rate), (0.01, 0.5, 100.0))}


def test_what_python_is_given_is_what_is_written(tmp_path):
    """The rows, whatever the algorithm is given as: a folder, a checkpoint, a function."""
    folder = save(tmp_path, "mine", 0.5, meta_trained_on=[TASK.traits()])
    rows = metaopt.evaluate([folder], [TASK], baselines=SGD, draws=2, **FEW, out=tmp_path / "out")
    header, written = report.read(tmp_path / "out")
    assert json.loads(json.dumps(rows)) == written
    assert (tmp_path / "out" / "report.html").read_text().count("<svg") == 2  # a problem each
    found = metaopt.read(folder)
    mine = [row for row in rows if row["method"] == "mine"]
    for same in (found, str(folder), lambda num_steps: found.learned.bind(found.theta, num_steps=num_steps)):
        assert metaopt.evaluate({"mine": same}, (TASK,), baselines=(), draws=2, **FEW) == mine
    assert [(row["phase"], row["draw"], row["method"]) for row in rows if row["phase"] == "tuning"] == [
        ("tuning", draw, "sgd") for draw in (0, 1) for _ in range(3)
    ]
    reported = [row for row in rows if row["phase"] == "report"]
    assert [(row["method"], row["draw"], row["seed"]) for row in reported] == [
        (method, draw, seed) for method in ("sgd", "mine") for draw in (0, 1) for seed in (0, 1)
    ]
    # The tuned baseline is at the rate of the checkpoint: the same runs, up to exp(log(rate)).
    curves = {name: [row["valid"] for row in reported if row["method"] == name] for name in ("sgd", "mine")}
    np.testing.assert_allclose(curves["sgd"], curves["mine"], rtol=1e-4)
    assert header["learned"] == ["mine"] and header["reference"] == "sgd" and header["title"] == "mine"
    assert header["novelty"] == {"mine": {"quadratic": []}} and header["rates"] == {"sgd": [0.01, 0.5, 100.0]}
    assert header["weights_sha256"] == {"mine": found.manifest["sha256"]}
    assert {name: header[name] for name in FEW} == FEW and header["draws"] == 2


def test_a_run_is_the_loop_of_the_tasks_own_step():
    """The last validation loss and the test loss of a reported seed, by hand."""
    task, rate = Quadratic(dim=3, noise=0.3), 0.4
    (row,) = metaopt.evaluate({"a": lambda n: optax.sgd(rate)}, [task], baselines=(), num_steps=3, seeds=1)
    quadric = task.sample(jax.random.fold_in(jax.random.key(3), 0))
    k_init, k_steps = jax.random.split(jax.random.split(jax.random.key(2), 1)[0])
    tx = optax.sgd(rate)
    state = task.start(tx, quadric, task.init(quadric, k_init))
    first = task.evaluate(quadric, task.solution(state), "valid")["loss"]
    for t in range(3):
        state, _ = task.step(tx, quadric, state, jax.random.fold_in(k_steps, t))
    last = task.evaluate(quadric, task.solution(state), "valid")["loss"]
    np.testing.assert_allclose(row["valid"], [first, last], rtol=1e-5)
    np.testing.assert_allclose(row["test"], last, rtol=1e-5)


def test_several_algorithms_share_one_table_and_the_baselines(tmp_path):
    """What is new to each is said for each; baselines are run once, and first."""
    known, unknown = save(tmp_path, "known", 0.5, meta_trained_on=[TASK.traits()]), save(tmp_path, "unknown", 0.1)
    sparse = Lasso(rows=3, columns=4, nonzeros=2)
    rows = metaopt.evaluate([known, unknown], [TASK, sparse], baselines=SGD, **FEW, out=tmp_path / "out")
    header, written = report.read(tmp_path / "out")
    assert written == json.loads(json.dumps(rows))
    assert header["learned"] == ["known", "unknown"] and header["title"] == "known, unknown"
    assert header["novelty"] == {
        "known": {"quadratic": [], "lasso": ["family"]},
        "unknown": {"quadratic": ["unknown"], "lasso": ["unknown"]},
    }
    ran = [(row["task"], row["method"]) for row in rows if row["phase"] == "report" and row["seed"] == 0]
    assert ran == [(task, method) for task in ("quadratic", "lasso") for method in ("sgd", "known", "unknown")]
    table, note = report.text_table(tmp_path / "out").rsplit("\n", 1)
    head, quadratic, lasso = (re.split(r" {2,}", line.rstrip()) for line in table.splitlines())
    columns = [f"{method} {what}" for what in ("valid", "steps") for method in ("sgd", "known", "unknown")]
    assert head == ["task", *columns, "failed", "new in"]
    assert quadratic[0] == "quadratic" and quadratic[-1] == "known: -, unknown: unknown"
    assert lasso[0] == "lasso" and lasso[-1] == "known: family, unknown: unknown"
    assert "2 fresh seeds" in note and "final loss of sgd" in note
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("reaches the loss that tuned sgd has") == 4  # two algorithms at a quarter and at the end
    for name in ("known", "unknown"):
        assert report.result(tmp_path / "out", name)["reference"] == "sgd"


def test_without_baselines_the_first_algorithm_is_the_reference(tmp_path):
    both = {"slow": lambda n: optax.sgd(0.1), "fast": lambda n: optax.sgd(1.0)}
    rows = metaopt.evaluate(both, [TASK], baselines=[], num_steps=40, seeds=2, out=tmp_path)
    header, _ = report.read(tmp_path)
    assert header["reference"] == "slow" and header["rates"] == {} and {row["phase"] for row in rows} == {"report"}
    cells = summary.summarize(rows, "slow", 40)[("quadratic", 0)]
    assert statistics.median(cells["slow"].ratios[1.0]) == 1.0
    assert statistics.median(cells["fast"].ratios[1.0]) == 0.5  # of two points along the run the first


def test_by_default_the_first_baselines_of_the_kind_take_part(monkeypatch):
    names = list(baselines.BASELINES)
    small = {name: b._replace(rates=b.rates[:2]) for name, b in baselines.BASELINES.items()}
    monkeypatch.setattr(baselines, "BASELINES", small)
    one = {"num_steps": 1, "seeds": 1, "tuning_seeds": 1}
    rows = metaopt.evaluate({"mine": lambda n: optax.sgd(0.5)}, [TASK], **one)
    assert list(dict.fromkeys(row["method"] for row in rows)) == [*names[:3], "mine"]
    rows = metaopt.evaluate({"mine": lambda n: optax.sgd(0.5)}, [TASK], baselines=("sgdm",), **one)
    assert list(dict.fromkeys(row["method"] for row in rows)) == ["sgdm", "mine"]


def test_what_cannot_be_compared_is_named(tmp_path):
    sgd, mine = (lambda n: optax.sgd(0.5)), save(tmp_path, "mine", 0.5)
    drift = checkpoint.Checkpoint(Learned(lambda key: {}, lambda theta, num_steps: None, "drift"), {}, {})
    for algorithms, tasks, options, message in [
        (
            {"a": sgd},
            [TASK],
            {"baselines": ["adamv"]},
            "unknown baseline of kind optimizer 'adamv'; did you mean 'adam",
        ),
        ({"a": sgd}, [TASK, TASK], {}, "two tasks are called 'quadratic'"),
        ({"sgd": sgd}, [TASK], {"baselines": SGD}, "two methods are called 'sgd'"),
        ([mine, mine], [TASK], {}, "two algorithms have the same name among .*: pass a mapping"),
        ({"a": 3}, [TASK], {}, "a is no algorithm: give a checkpoint or a function num_steps -> algorithm, got 3"),
        ({"a": drift}, [TASK], {"baselines": []}, "task quadratic is solved by optimizer, a is of kind drift"),
        (["mime"], [TASK], {}, "unknown checkpoint 'mime'"),
        ({"a": sgd}, [], {}, "needs an algorithm or a baseline, and a task"),
        ({}, [TASK], {"baselines": []}, "needs an algorithm or a baseline, and a task"),
        ({"a": sgd}, [TASK], {"num_steps": 30}, "steps must be a multiple of 20, got 30"),
        ({"a": sgd}, [TASK], {"num_steps": 1, "out": mine / "manifest.json"}, "cannot write results to"),
    ]:
        with pytest.raises(UserError, match=message):
            metaopt.evaluate(algorithms, tasks, **options)


def test_returns_are_drawn_on_a_linear_axis():
    positive, negative = {"valid": [1.0, 0.1, None]}, {"valid": [-0.1, -0.5, -0.6]}  # null: a run that failed
    assert plots.scale({"a": [positive]}, "valid") == "log"
    assert plots.scale({"a": [positive], "b": [negative]}, "valid") == "linear"
