"""The study of estimators: closed forms, what is measured against them, the picture."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_train import estimators
from meta_train.estimators.samples import Sampling
from meta_train.parallel import devices
from meta_train.studies import estimator as study
from meta_train.studies.estimator import cosine, estimates, problems, regression, variance

SHIPPED = Path(study.__file__).parent


def influence_of(kernel, horizon=64, size=10) -> np.ndarray:
    """(T, T, P) with ``kernel(t - s)`` in one direction for s <= t."""
    lag = np.subtract.outer(np.arange(horizon), np.arange(horizon))
    influence = np.zeros((horizon, horizon, size))
    influence[..., 0] = np.where(lag >= 0, kernel(np.maximum(lag, 0)), 0.0)
    return influence


@pytest.mark.parametrize(
    "kernel, expected",
    [
        (lambda lag: 0.9**lag, [11.0, 7.8, 6.5, 5.9, 5.6, 5.4, 5.3]),
        (lambda lag: lag * 0.0 + 1.0, [11.0, 10.2, 8.9, 8.1, 7.7, 7.4, 7.3]),
    ],
)
def test_closed_form_of_an_episode_is_the_known_table(kernel, expected):
    found = [variance.closed_form(influence_of(kernel), u, u)["episode"] for u in (1, 2, 4, 8, 16, 32, 64)]
    np.testing.assert_allclose(found, expected, atol=0.051)  # the table has one decimal


@pytest.mark.parametrize("num_draws", [1, 2, 4])
def test_closed_forms_are_the_variance_of_their_definition(num_draws):
    """ES-Single, GPES and PES from their definition, on arbitrary influences of a linear problem."""
    rng = np.random.default_rng(0)
    num, size, windows = 200_000, 3, 4
    influence = np.tril(np.ones((8, 8)))[..., None] * rng.normal(size=(8, 8, size))
    blocks = variance.blocks(influence, windows, num_draws)
    noise = rng.normal(size=(num, num_draws, size))
    slopes = np.einsum("ndp,udp->nu", noise, blocks)
    draw = np.arange(windows) * num_draws // windows
    drawn = np.cumsum(noise, axis=1)[:, draw] * slopes[..., None]
    found, expected = variance.measured(drawn, influence), variance.closed_form(influence, windows, num_draws)
    for kind in variance.KINDS:
        np.testing.assert_allclose(found[kind][0], expected[kind], rtol=0.03)  # four standard errors


def test_influences_add_up_to_the_gradient():
    studied = problems.quadratic(horizon=16, dim=3)

    def mean_loss(theta):
        episode = studied.problem.reset(theta, jax.random.key(0), 0)
        return jnp.mean(jax.lax.scan(lambda e, _: studied.problem.step(theta, e), episode, length=16)[1])

    influence = variance.influences(studied)
    assert np.count_nonzero(np.triu(np.abs(influence).sum(axis=-1), 1)) == 0
    np.testing.assert_allclose(influence.mean(axis=0).sum(axis=0), jax.grad(mean_loss)(studied.theta), rtol=1e-5)


def test_estimates_are_those_of_the_estimator():
    """Running in units of sigma changes nothing but rounding."""
    studied = problems.quadratic(horizon=8, dim=3)
    noise, data = jax.random.split(jax.random.key(3), 2)[:, None]
    run = estimates.build("pes", studied.problem, 8, 2)
    found = run(studied.theta, studied.sigma, noise, data)[0]
    config = Sampling(num_samples=1, window=2, sigma=studied.sigma, staggered=False)
    estimator = estimators.build("pes", studied.problem, config, devices.mesh(1))
    state, expected = estimator.init(studied.theta, noise[0]), []
    for _ in range(4):
        grad, state, _ = jax.jit(estimator.estimate)(studied.theta, state, 0)
        expected.append(grad)
    # Differences of losses of order one, divided by sigma = 0.1.
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-4, atol=1e-4)


def test_cosine_of_means_grows_as_noise_is_averaged_away():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=100)
    samples = truth + 3.0 * np.linalg.norm(truth) / 10 * rng.normal(size=(4096, 100))
    found = cosine.convergence(samples, truth)
    # |noise of a mean of k|^2 = 9 |truth|^2 / k, nearly at a right angle to the truth.
    expected = 1 / np.sqrt(1 + 9 / np.array(found["num_samples"]))
    np.testing.assert_allclose([point[0] for point in found["cosine"]], expected, atol=0.02)
    curve = found | {"cost_of_a_sample": 10.0}
    assert cosine.at_cost(curve, 40.0) == pytest.approx(found["cosine"][2][0])


TINY = study.Settings(
    toy_windows=(1, 4, 32),
    toy_pairs=1024,
    learned_windows=(1, 4),
    learned_pairs=64,
    outer_steps=(1, 2),
    cosine_window=4,
    cosine_seconds=1e-6,  # one call each
    truth_samples=32,
    regression_steps=1000,
    regression_points=10,
    regression_seeds=1,
)


@pytest.fixture(scope="module")
def results():
    """The whole study, in small: toys for the learned optimizer, some of the estimators."""
    with pytest.MonkeyPatch.context() as patch:
        small = lambda sigma: problems.quadratic(horizon=16, dim=2)._replace(sigma=sigma)
        patch.setattr(problems, "learned_optimizer", small)
        patch.setattr(cosine, "ESTIMATORS", ("backprop", "es", "es_single", "tbptt"))
        chosen = ("es_single", "pes", "truncated_es", "tbptt", "backprop")
        patch.setattr(regression, "SETTINGS", {name: regression.SETTINGS[name] for name in chosen})
        return study.measure(TINY)


def test_variance_of_es_single_is_flat_and_that_of_pes_grows(results):
    for name, pes_grows in (("quadratic", 2.5), ("influence balancing", 5.0)):
        studied = results["variance"][name]
        level = studied["num_meta_parameters"] + 1
        for kind in variance.KINDS:
            # Products of normals have heavy tails: four standard errors of 1,024 pairs are 18 % of
            # 11, and 35 % of 2 for a single meta-parameter.
            tolerance = 0.18 if level > 2 else 0.35
            values = [point[0] for point in studied["measured"]["es_single"][kind]]
            np.testing.assert_allclose(values, level, rtol=tolerance)
        assert study.growth(studied["measured"], "pes", "window") > pes_grows
        # The marks of PES lie on its line.
        theory, measured = studied["pes_in_theory"], studied["measured"]["pes"]
        expected = [theory["window"][theory["num_windows"].index(u)] for u in measured["num_windows"]]
        np.testing.assert_allclose([point[0] for point in measured["window"]], expected, rtol=0.2)
    # Over a whole episode the order is the other way round where all influences agree.
    assert study.growth(results["variance"]["quadratic"]["measured"], "pes", "episode") < 0.7


def test_cosine_tells_bias_from_noise(results):
    curves = results["cosine"]["estimators"]
    assert curves["es"]["cost_of_a_sample"] == 2 * 16  # the unit of cost
    assert curves["backprop"]["cosine"][-1][0] > 0.9999  # a quadratic: every sample has the same gradient
    assert curves["tbptt"]["cosine"][-1][0] < 0.999 < results["cosine"]["cosine_of_halves_of_the_truth"]


def test_toy_regression_is_solved_by_es_single_and_pes_only(results):
    final = {name: run["meta_loss"][0][-1] for name, run in results["regression"]["estimators"].items()}
    assert results["regression"]["start"] == pytest.approx(24.88, abs=0.01)
    assert max(final["es_single"], final["pes"]) < 6.5
    assert min(final["tbptt"], final["backprop"]) > 24 and 8 < final["truncated_es"] < 24


def test_results_go_through_json_to_a_picture(results, tmp_path):
    study.prepare(tmp_path / "new")
    path = study.write(tmp_path / "new", results)
    assert json.loads((tmp_path / "new" / "study.json").read_text()) == results
    first = path.read_bytes()
    assert first[:8] == b"\x89PNG\r\n\x1a\n" and len(first) > 50_000
    assert study.draw(tmp_path / "new").read_bytes() == first
    assert "quadratic, window: es_single x " in study.summary(results)


def test_what_ships_is_complete_and_says_what_it_should():
    results = json.loads((SHIPPED / "study.json").read_text())
    assert results["settings"] == json.loads(json.dumps(study.rounded(vars(study.Settings()))))
    assert set(results["cosine"]["estimators"]) == set(cosine.ESTIMATORS)
    assert set(results["regression"]["estimators"]) == set(regression.SETTINGS)
    assert (SHIPPED / "study.png").stat().st_size > 100_000
    for studied in results["variance"].values():
        for kind in variance.KINDS:
            values = [point[0] for point in studied["measured"]["es_single"][kind]]
            assert max(values) / min(values) < 1.3
        assert study.growth(studied["measured"], "pes", "window") > 3
