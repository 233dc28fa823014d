"""Families against trajectories computed with the reference implementations."""

from pathlib import Path

import numpy as np
import pytest

from tests import golden
from tests.golden.__main__ import main

FILES = sorted(Path(golden.__file__).parent.glob("*.npz"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_matches_the_reference(path):
    for case, error in golden.find_replay(path)(path):
        assert error <= 1, f"{case}: {error:.2f} times the tolerance"


def test_every_golden_file_here_has_a_replay():
    assert FILES and all(golden.find_replay(path) for path in FILES)


def test_a_wrong_answer_fails(tmp_path, capsys):
    data = dict(np.load(FILES[0]))
    name = next(k for k in data if "/main/params/matrix" in k and not k.startswith("in/"))
    data[name] = data[name] + 1e-3
    np.savez(tmp_path / FILES[0].name, **data)
    assert main([str(tmp_path / FILES[0].name)]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_unsupported_files_are_said_to_be(tmp_path, capsys):
    (tmp_path / "velo_mlp_lopt_notes.md").touch()
    (tmp_path / "nino_mlp.npz").touch()
    assert main([str(tmp_path / "nino_mlp.npz"), str(tmp_path / "velo_mlp_lopt_notes.md")]) == 2
    assert capsys.readouterr().out.count("unsupported") == 2
