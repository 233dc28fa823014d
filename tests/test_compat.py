"""Which versions and Pythons ``make compat`` takes."""

from packaging.requirements import Requirement

from tests import compat


def test_a_version_is_picked_by_its_age_within_the_bound():
    versions, bound = ["0.10.2", "0.9.2", "0.12.0", "0.11.2", "0.11.0", "0.11.10"], Requirement("jax>=0.10.2,<0.12")
    picked = [compat.pick(versions, bound, age) for age in ("oldest", "second oldest", "second newest", "newest")]
    assert picked == ["0.10.2", "0.11.0", "0.11.2", "0.11.10"]
    assert {compat.pick(["0.2.8", "0.2.7"], Requirement("optax>=0.2.8"), age) for age in compat.AGES} == {"0.2.8"}
    assert compat.pick([], bound, "newest") == compat.pick(["0.9.2"], bound, "oldest") == "none"


def test_every_age_and_every_python_has_its_turn():
    assert [python for python, _ in compat.spread(["3.11", "3.12", "3.13"])] == ["3.11", "3.12", "3.12", "3.13"]
    assert [python for python, _ in compat.spread(["3.12"])] == ["3.12"] * 4
    assert [age for _, age in compat.spread(["3.11", "3.13"])] == list(compat.AGES)
    assert compat.spread([]) == []


def test_the_pythons_are_those_of_the_project():
    assert compat.supported_pythons() == ["3.11", "3.12", "3.13"]
    assert set(compat.VARIED) <= set(compat.BOUNDS)


def test_a_python_that_is_missing_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert compat.find_python("3.99") is None
