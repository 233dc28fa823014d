"""Families and estimators against what the reference implementations computed."""

from pathlib import Path

import numpy as np
import pytest

from tests import golden
from tests.golden.__main__ import main

FILES = sorted(Path(golden.__file__).parent.glob("*.npz"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_matches_the_reference(path):
    try:
        cases = golden.find_replay(path)(path)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    for case, error in cases:
        assert error <= 1, f"{case}: {error:.2f} times the tolerance"


def test_every_golden_file_here_has_a_replay():
    assert FILES and all(golden.find_replay(path) for path in FILES)


def test_a_wrong_answer_fails(tmp_path, capsys):
    (path,) = [p for p in FILES if p.name == "est_reset.npz"]
    data = dict(np.load(path))
    data["corrected_pes_grad"] = 1.01 * data["corrected_pes_grad"]
    np.savez(tmp_path / path.name, **data)
    assert main([str(tmp_path / path.name)]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_unsupported_files_are_said_to_be(tmp_path, capsys):
    (tmp_path / "velo_mlp_lopt_notes.md").touch()
    (tmp_path / "nino_mlp.npz").touch()
    assert main([str(tmp_path / "nino_mlp.npz"), str(tmp_path / "velo_mlp_lopt_notes.md")]) == 2
    assert capsys.readouterr().out.count("unsupported") == 2
