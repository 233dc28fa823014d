"""The contract tests with the oldest and newest jax, flax and optax within our bounds, on every Python.

Nothing is typed in by hand: bounds and Pythons are read from pyproject.toml, versions are asked from
pip. Each combination has an environment of its own under .cache/compat, kept for the next run.

    python -m tests.compat    # or make compat; exits with 1 unless all that could be run has passed
"""

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".cache" / "compat"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BOUNDS = {bound.name: bound for bound in map(Requirement, PROJECT["dependencies"])}
VARIED = ("jax", "flax", "optax")
AGES = {"oldest": 0, "second oldest": 1, "second newest": -2, "newest": -1}  # positions in a sorted list of versions
SUBJECTS = (
    "contract_optimizers",
    "contract_leaves",
    "contract_frameworks",
    "grouping",
    "stacking",
    "checkpoint",
    "seal",
    "importers",
    "weight_types",
)
TESTS = [f"tests/metaopt/test_{subject}.py" for subject in SUBJECTS]
ROW = "{:<8} {:<14} {:<8} {:<8} {:<7} {:<4} {:>7} {:>7} {:>8}"


class Counts(NamedTuple):
    """What a run of the tests came to."""

    passed: int
    failed: list[str]  # names of tests


def main() -> int:
    pythons = {minor: find_python(minor) for minor in supported_pythons()}
    found = {minor: python for minor, python in pythons.items() if python}
    for minor in sorted(pythons.keys() - found.keys()):
        print(f"Python {minor} is skipped: no python{minor} that starts on PATH or in pyenv; install it, with venv")
    failures = [] if found else ["no supported Python was found"]
    print(ROW.format("Python", "versions", *VARIED, "x64", "passed", "failed", "seconds"), flush=True)
    for minor, age in spread(list(found)):
        environment = FOLDER / f"{minor}-{age.replace(' ', '-')}"
        versions, error = install(found[minor], environment, age)
        if error:
            print(ROW.format(minor, age, *versions, *["-"] * 4), flush=True)
            failures.append(f"{minor}, {age}: {error}")
            continue
        for x64 in (False, True):
            start = time.perf_counter()
            counts = run_tests(environment, x64)
            seconds = f"{time.perf_counter() - start:.0f}"
            label = "on" if x64 else "off"
            print(ROW.format(minor, age, *versions, label, counts.passed, len(counts.failed), seconds), flush=True)
            failures += [f"{minor}, {age}, x64 {label}: {name}" for name in counts.failed]
    print("\n".join(failures) or "all passed")
    return bool(failures)


def supported_pythons() -> list[str]:
    """Minor versions that requires-python allows, e.g. ["3.11", "3.12"]."""
    allowed = SpecifierSet(PROJECT["requires-python"])
    return [f"3.{minor}" for minor in range(100) if f"3.{minor}" in allowed]


def find_python(minor: str) -> Path | None:
    """An interpreter that starts, from PATH or else from pyenv, whose shims on PATH may refuse to."""
    folder = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [shutil.which(f"python{minor}"), *folder.glob(f"{minor}.*/bin/python")]
    for candidate in filter(None, candidates):
        if subprocess.run([candidate, "-c", "import ensurepip, venv"], capture_output=True).returncode == 0:
            return Path(candidate)
    return None


def spread(pythons: list[str]) -> list[tuple[str, str]]:
    """Each age with a Python: the older ones with the older Pythons, and no Python left out."""
    last, steps = len(pythons) - 1, len(AGES) - 1
    return [(pythons[round(i * last / steps)], age) for i, age in enumerate(AGES)] if pythons else []


def pick(versions: list[str], bound: Requirement, age: str) -> str:
    """The version of an age within a bound; one that is alone is of every age, and "none" is not there."""
    allowed = [str(version) for version in sorted(map(Version, bound.specifier.filter(versions)))] or ["none"]
    return allowed[AGES[age]] if len(allowed) > 1 else allowed[0]


def install(python: Path, environment: Path, age: str) -> tuple[list[str], str]:
    """Makes an environment, unless there is one with the same packages.

    Returns:
      The versions of VARIED, and what is wrong where they cannot be installed together with the rest.
    """
    if not (environment / "bin" / "python").exists():
        subprocess.run([python, "-m", "venv", environment], check=True)
    pip = [environment / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
    versions = [pick(ask_versions(pip, name), BOUNDS[name], age) for name in VARIED]
    if "none" in versions:
        bound = BOUNDS[VARIED[versions.index("none")]]
        return versions, f"pip offers no {bound}: is its index reached?"
    tools = [tool for tool in PROJECT["optional-dependencies"]["dev"] if tool.startswith(("pytest", "equinox"))]
    pins = [f"{name}=={version}" for name, version in zip(VARIED, versions, strict=True)]
    wanted, installed = "\n".join([*PROJECT["dependencies"], *tools, *pins]), environment / "requirements.txt"
    if not installed.exists() or installed.read_text() != wanted:
        command = [*pip, "install", "--quiet", *wanted.splitlines()]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            return versions, f"cannot be installed: {' '.join(result.stderr.split())}"
        installed.write_text(wanted)
    return versions, ""


def ask_versions(pip: list, package: str) -> list[str]:
    """All versions of a package that pip could install; none if it cannot reach its index."""
    printed = subprocess.run([*pip, "index", "versions", package], capture_output=True, text=True).stdout
    listed = re.search("Available versions: (.*)", printed)
    return listed[1].split(", ") if listed else []


def run_tests(environment: Path, x64: bool) -> Counts:
    """Runs TESTS; what they print is in a file beside their report."""
    name = "x64-on" if x64 else "x64-off"
    report, log = environment / f"{name}.xml", environment / f"{name}.txt"
    report.unlink(missing_ok=True)
    settings = {"JAX_ENABLE_X64": str(int(x64))}
    command = [environment / "bin" / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    with log.open("w") as output:
        subprocess.run([*command, *TESTS], cwd=ROOT, env=os.environ | settings, stdout=output, stderr=output)
    if not report.exists():
        return Counts(0, [f"the tests did not end, see {log.relative_to(ROOT)}"])
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    names = [f"{case.get('classname')}::{case.get('name')}, see {log.relative_to(ROOT)}" for case in failed]
    return Counts(len(cases) - len(failed) - len(skipped), names)


if __name__ == "__main__":
    sys.exit(main())
