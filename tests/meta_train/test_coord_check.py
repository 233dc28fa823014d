"""The coordinate check: slopes on a small network, and what the command writes."""

import json

import jax
import numpy as np
import pytest

import metaopt
from meta_train import cli
from meta_train.studies import coordinate_check
from metaopt import checkpoint, families
from metaopt.errors import UserError

TINY = coordinate_check.problems()["mlp"]._replace(widths=(32, 64, 256))


@pytest.fixture(scope="module")
def adam(tmp_path_factory):
    """The folder of the command, at small widths."""
    out = tmp_path_factory.mktemp("check")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coordinate_check, "problems", lambda: {"mlp": TINY})
        assert cli.main(["coord-check", "--out", str(out)]) == 0
    return out


def check(slopes):
    """Flat under muP, growing under SP.

    At so small widths the share of the outputs' movement that has a random sign, which falls
    as width^(-1/2), is still seen: they are let fall a little, not grow.
    """
    for layer in ("layer_0", "layer_1", "layer_2"):
        assert abs(slopes["muP"][layer]) < 0.1, layer
    assert -0.3 < slopes["muP"]["output"] < 0.1
    for layer in ("layer_1", "layer_2", "output"):
        assert slopes["SP"][layer] > 0.4, layer


def test_adam_is_flat_under_mup_alone(adam):
    check(json.loads((adam / "coordinate_check.json").read_text())["slopes"])
    assert (adam / "coordinate_check.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_shows_the_slopes(adam):
    result = json.loads((adam / "coordinate_check.json").read_text())
    lines = coordinate_check.table(result).splitlines()
    assert lines[-1].split() == ["output"] + [f"{result['slopes'][name]['output']:.2f}" for name in ("muP", "SP")]
    result["slopes"]["SP"]["output"] = None
    assert coordinate_check.table(result).endswith("none")


def test_mulo_is_flat_under_mup_alone():
    """Whatever its theta: what it reads is normalized."""
    learned = families.build("small_fc", hidden=32, step_multiplier=0.01)
    tx = learned.bind(learned.init(jax.random.key(0)))
    check(coordinate_check.measure(TINY._replace(widths=(32, 256)), tx, relative=False)["slopes"])


def test_slope():
    widths, slope = (10, 100, 1000), coordinate_check.slope
    np.testing.assert_allclose(slope(widths, [3.0 * w**0.5 for w in widths]), 0.5, rtol=1e-3)  # 4 digits
    assert slope(widths, [1.0, None, 1.0]) is None and slope(widths, [1.0, 0.0, 1.0]) is None


def test_a_checkpoint_that_is_no_optimizer_is_refused(tmp_path, monkeypatch):
    drift = families.build("mlp")._replace(kind="drift")
    monkeypatch.setattr(metaopt, "read", lambda name: checkpoint.Checkpoint(drift, {}, {}))
    with pytest.raises(UserError, match="for optimizers, mine is of kind drift"):
        coordinate_check.write("mine", "mlp", tmp_path)


def test_mistakes(tmp_path, capsys):
    with pytest.raises(UserError, match="did you mean 'transformer'"):
        coordinate_check.write("adam", "transfomer", tmp_path)
    (tmp_path / "file").touch()
    assert cli.main(["coord-check", "--out", str(tmp_path / "file" / "new")]) == 2
    assert "choose another with --out" in capsys.readouterr().err
    assert cli.main(["coord-check", "--optimizer", "adm", "--out", str(tmp_path)]) == 2
    assert "unknown checkpoint 'adm'" in capsys.readouterr().err
