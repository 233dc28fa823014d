"""metaopt <- tasks <- meta_train: imports point one way. And the wheel lists every package."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {"metaopt": {"tasks", "meta_train"}, "tasks": {"meta_train"}}
# Of metaopt, tasks may know the contracts and how to word an error.
TASKS_MAY_USE = {"metaopt.core", "metaopt.errors", "metaopt.references"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_nothing_imports_against_the_flow(package):
    for path in (ROOT / package).rglob("*.py"):
        against = {name for name in imports(path) if name.partition(".")[0] in FORBIDDEN[package]}
        assert not against, f"{path.relative_to(ROOT)} imports {against}"


def test_tasks_know_only_the_contracts():
    for path in (ROOT / "tasks").rglob("*.py"):
        used = {name for name in imports(path) if name.partition(".")[0] == "metaopt"}
        assert used <= TASKS_MAY_USE, f"{path.relative_to(ROOT)} imports {used - TASKS_MAY_USE}"


def test_core_imports_nothing_of_ours():
    ours = {"metaopt", "tasks", "meta_train"}
    assert not {name for name in imports(ROOT / "metaopt" / "core.py") if name.partition(".")[0] in ours}


def test_the_wheel_lists_every_package():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {p.parent for top in ("metaopt", "tasks", "meta_train") for p in (ROOT / top).rglob("*.py")}
    data = {"metaopt.checkpoints", "meta_train.slurm"}  # folders at the top of the tree
    assert listed == {".".join(f.relative_to(ROOT).parts) for f in folders} | data
