"""The comparison: fair, and arithmetic that can be checked by hand."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.errors import UserError
from metaopt.evaluation import compare, heldout, report, statistics, summary, targets
from metaopt.evaluation.run import trainer
from metaopt.optimizers import baselines
from tasks.quadratic import Quadratic

TASK = Quadratic(dim=3, condition=10.0)
SETTINGS = compare.Settings(num_steps=40, every=10, seeds=3, tuning_seeds=2)


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
    def update(grads, state, params, *, value, value_fn):
        del grads, value
        return jax.tree.map(lambda g: -0.1 * g, jax.grad(value_fn)(params)), state

    twice = lambda rate: optax.GradientTransformationExtraArgs(lambda params: (), update)
    keys = jax.random.split(jax.random.key(2), 1)
    noisy = Quadratic(dim=3, noise=1.0)  # which tells whether it is the same batch
    curves = [trainer(noisy, make, 4, 1)(jnp.full(1, 0.1), jax.random.key(3), keys) for make in (twice, optax.sgd)]
    np.testing.assert_allclose(curves[0].valid, curves[1].valid, rtol=1e-6)


def test_the_best_rate_is_chosen_on_tuning_seeds_and_divergence_loses():
    entrant = compare.Entrant("sgd", lambda rate, n: optax.sgd(rate), (1e-3, 1.0, 1e4))
    rows = list(compare.compare(TASK, [entrant], SETTINGS))
    tuning = {row["rate"]: row["final_valid"] for row in rows if row["phase"] == "tuning"}
    assert tuning[1e4] == [None, None] and max(tuning[1.0]) < min(tuning[1e-3])
    reported = [row for row in rows if row["phase"] == "report"]
    assert [row["seed"] for row in reported] == [0, 1, 2]
    assert all(row["rate"] == 1.0 and not row["rate_at_edge"] and not row["diverged"] for row in reported)


def test_everybody_starts_from_the_same_parameters():
    names = {"a": 0.1, "b": 1.0}
    entrants = [compare.learned(name, lambda n, rate=rate: optax.sgd(rate)) for name, rate in names.items()]
    rows = list(compare.compare(TASK, entrants, SETTINGS))
    starts = {name: [row["valid"][0] for row in rows if row["optimizer"] == name] for name in names}
    assert starts["a"] == starts["b"] and len(set(starts["a"])) == 3


def test_a_diverged_run_is_kept_and_counted():
    entrants = [
        compare.learned("good", lambda n: optax.sgd(1.0)),
        compare.learned("bad", lambda n: optax.sgd(1e6)),
    ]
    rows = json.loads(json.dumps(list(compare.compare(TASK, entrants, SETTINGS))))
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
        "phase": "report", "task": "t", "draw": 0, "optimizer": name, "rate": None, "rate_at_edge": False,
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
    entrants = [
        compare.learned("adamw", lambda n: optax.adamw(0.1)),
        compare.learned("mine", lambda n: optax.sgd(1.0)),
    ]
    header = {
        "title": "mine on <test>", "learned": ["mine"], "reference": "adamw", "num_steps": 40, "seeds": 3,
        "novelty": {"quadratic": ["family"]},
    }  # fmt: skip
    rows = [header, *compare.compare(TASK, entrants, SETTINGS)]
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


@pytest.mark.parametrize("bad", [{"seeds": 0}, {"num_steps": 30, "every": 20}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(UserError):
        compare.Settings(**bad)
