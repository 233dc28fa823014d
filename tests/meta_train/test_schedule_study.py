"""Learned schedules beside a grid, on a run of seconds."""

import json

import numpy as np
import pytest

from meta_train import cli, recipes, settings, training
from meta_train.run import directory
from meta_train.studies import schedule
from metaopt.errors import UserError

SMALL = ["tasks=quadratics", "shortest=20", "longest=20", "window=10", "num_samples=8", "outer_steps=4", "warmup=1"]
TINY = settings.override(recipes.find("mnist-schedule"), [*SMALL, "steps_per_dispatch=2", "save_every=2"])


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    training.train(TINY, folder := tmp_path_factory.mktemp("runs") / "learned")
    return folder


def test_the_study_writes_what_it_measured(learned, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(schedule, "RATES", (1e-3, 1e-1, 1e4))
    monkeypatch.setattr(schedule, "DECAYS", (0.0, 3.0))
    monkeypatch.setattr(schedule, "POINTS", 4)
    # As many seeds as the tuning has: one program for both.
    assert cli.main(["schedule-study", str(learned), "--seeds", "3", "--out", str(tmp_path / "study")]) == 0
    assert "best of the grid" in capsys.readouterr().out
    assert (tmp_path / "study" / "schedule.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((tmp_path / "study" / "schedule.json").read_text())
    ours, best = result["optimizers"]["learned"], result["optimizers"]["best of the grid"]
    surface = np.array(result["surface"], float)  # nan where all runs diverged
    assert surface.shape == (2, 3) and np.isfinite(surface[:, :2]).all()
    decay, rate = np.unravel_index(np.nanargmin(surface), surface.shape)
    np.testing.assert_allclose((best["decay"], best["learning_rate"][0]), ((0.0, 3.0)[decay], (1e-3, 1e-1)[rate]), 1e-5)
    # What was spent: pairs of members for windows, and tuning seeds for points.
    assert ours["inner_steps"] == 4 * 2 * 8 * 10 and best["inner_steps"] == 6 * 3 * 20
    theta, _ = training.read_theta(learned)
    expected = np.exp(theta["log_learning_rate"]) / (1 + np.array(result["steps"]) / 200) ** float(theta["decay"])
    np.testing.assert_allclose(ours["learning_rate"], expected, rtol=1e-4)  # five digits are written
    np.testing.assert_allclose(result["paths"]["learned"][-1], (expected[0], theta["decay"]), rtol=1e-4)
    for name in ("mean_valid", "final_valid", "test"):
        middle, low, high = ours[name]
        assert 0 < low <= middle <= high
    np.testing.assert_allclose(ours["valid"][-1], ours["final_valid"])


@pytest.mark.parametrize(
    "changes, message",
    [
        (["settings.decay_steps=0"], "learns no rate and decay"),
        (["longest=40"], "cannot be compared: they differ in longest"),
        ([], "give them different ones"),
    ],
)
def test_runs_that_cannot_be_compared_are_named(learned, tmp_path, changes, message):
    other = tmp_path / ("other" if changes else "learned")
    directory.make(settings.override(TINY, changes), "optimizer", other)
    with pytest.raises(UserError, match=message):
        schedule.write([learned, other], tmp_path / "study")
