"""Every README: its Python and the commands beside it run, all other commands parse, what it names exists.

The READMEs are read as a user would follow them, in a folder that begins as a copy of ``tests/outside``. A block of
Python that begins with a docstring is a file; the text before it says its name.
"""

import importlib.util
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import pytest

from meta_train import cli, recipes, settings
from meta_train.cluster import sweep
from metaopt import families, references
from tasks import suites

ROOT = Path(__file__).parents[1]
READMES = ["README.md", *(f"{folder}/README.md" for folder in ("metaopt", "tasks", "meta_train", "tests", "slurm"))]
FOLDERS = ("metaopt", "tasks", "meta_train", "checkpoints", "slurm", "tests")
# What is appended to the commands that run, so that they take seconds: the last value of an option counts.
SHORT = {
    "train": ["outer_steps=20", "warmup=2", "save_every=20"],
    "evaluate": ["--steps", "20", "--seeds", "1", "--draws", "1"],
    "submit": ["--dry-run"],
}
DEVICES = ["--devices", "8"]  # those that the tests have


class Block(NamedTuple):
    """A fenced block of a README."""

    language: str
    text: str
    before: str  # the text between it and the block, or the beginning, before it
    line: int  # of the README at which its text begins

    @property
    def is_file(self) -> bool:
        return self.language == "python" and self.text.startswith('"""')

    @property
    def file(self) -> str:
        """The name of the file that it is: the last one in the text before it."""
        return re.findall(r"`([\w./]+\.py)`", self.before)[-1]

    @property
    def commands(self) -> list[list[str]]:
        """The words of every ``metaopt`` command; of one in a loop too."""
        lines = re.findall(r"^(?:for .*; do )?metaopt ([^#\n;]+)", self.text, re.MULTILINE)
        return [shlex.split(line.replace("$i", "0")) for line in lines]


@pytest.fixture(params=READMES)
def readme(request):
    return ROOT / request.param


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a user works: the working directory, and the place of new checkpoints."""
    folder = shutil.copytree(ROOT / "tests" / "outside", tmp_path / "outside")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("METAOPT_CHECKPOINTS", str(folder / "checkpoints"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:  # another test has files of the same names
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


def blocks(readme: Path) -> list[Block]:
    text, found, end = readme.read_text(), [], 0
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        found.append(Block(match[1], match[2], text[end : match.start()], text.count("\n", 0, match.start(2)) + 1))
        end = match.end()
    return found


def prose(readme: Path) -> str:
    """The text without its blocks."""
    return re.sub(r"^```\w*\n.*?^```$", "", readme.read_text(), flags=re.DOTALL | re.MULTILINE)


def code_in(text: str) -> list[str]:
    """What stands between single backticks, on one line."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]


def write_files(readme: Path, folder: Path) -> None:
    for block in blocks(readme):
        if block.is_file:
            (folder / block.file).write_text(block.text)


def test_python_runs(readme, folder):
    names = {"params": {"w": jnp.ones((8, 16))}, "grads": {"w": jnp.ones((8, 16))}, "loss": jnp.float32(1.0)}
    for block in blocks(readme):
        if block.language == "python":
            # Empty lines before it: a traceback then has the lines of the README.
            exec(compile("\n" * (block.line - 1) + block.text, str(readme), "exec"), names)


def test_every_command_parses_and_what_it_names_is_found(readme, folder):
    write_files(readme, folder)
    for words in [command for block in blocks(readme) for command in block.commands]:
        arguments = cli.parse(words)
        work = words[1] if words[0] == "submit" else words[0]
        if work == "sweep":
            assert sweep.plan(arguments.settings, arguments.dir)
        if work == "train" and arguments.recipe and "=" not in arguments.recipe:
            settings.override(recipes.find(arguments.recipe), arguments.settings)
        if work == "evaluate":
            tasks = suites.build(arguments.suite)
            assert set((arguments.tasks or tasks[0].name).split(",")) <= {task.name for task in tasks}
            named = [name for name in (arguments.baselines or "").split(",") if not references.is_reference(name)]
            assert set(filter(None, named)) <= set(families.baselines(tasks[0].solved_by[0]))
            for family in arguments.family:
                families.find(family.rpartition("=")[2])


def test_commands_in_the_text_parse(readme):
    for words in [code.split(" > ")[0].split()[1:] for code in code_in(prose(readme)) if code.startswith("metaopt ")]:
        if len(words) == 1:  # a command is named, not typed
            with pytest.raises(SystemExit) as ended:
                cli.parse([*words, "--help"])
            assert ended.value.code == 0, words
        else:
            cli.parse(words)


@pytest.mark.parametrize("readme", ["README.md", "meta_train/README.md"], indirect=True)
def test_commands_beside_a_file_run(readme, folder, capsys):
    write_files(readme, folder)
    found = blocks(readme)
    beside = [block for before, block in zip(found, found[1:], strict=False) if before.is_file and block.commands]
    assert beside
    for words in beside[0].commands:
        end = words.index("--") if "--" in words else len(words)
        short = [] if "--resume" in words else SHORT.get(words[0], [])
        devices = DEVICES if words[0] == "train" else []
        assert cli.main([*words[:end], *short, *devices, *words[end:]]) == 0, (words, capsys.readouterr())


def test_the_file_at_the_top_is_the_one_of_the_folder_outside():
    (shown,) = [block for block in blocks(ROOT / "README.md") if block.is_file]
    assert shown.text == (ROOT / "tests" / "outside" / shown.file).read_text()


def test_make_targets_and_modules_exist(readme):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    code = "\n".join([*code_in(prose(readme)), *(block.text for block in blocks(readme))])
    assert set(re.findall(r"^make ([\w-]+)", code, re.MULTILINE)) <= set(targets)
    for module in re.findall(r"python -m ([\w.]+)", code):
        assert importlib.util.find_spec(module), module


def test_links_and_paths_exist(readme):
    text = prose(readme)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert "://" in link or (readme.parent / link).exists(), link
    words = " ".join([*code_in(text), *(block.text for block in blocks(readme) if block.language != "python")]).split()
    for path in [word for word in words if re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w./*-]*", word)]:
        # "checkpoints/" of a user is that of the working directory; "slurm/" in tests/README.md is tests/slurm.
        assert list(ROOT.glob(path)) or list(readme.parent.glob(path)), path


@pytest.mark.parametrize("readme", READMES[1:], indirect=True)
def test_the_map_of_a_folder_names_all_that_is_in_it(readme):
    (table,) = re.findall(r"\| --- \| --- \|\n((?:\|.*\n)+)", prose(readme))[:1]
    first_cells = [line.split(" | ")[0] for line in table.splitlines()]
    named = [path.rstrip("/") for path in code_in("\n".join(first_cells))]
    for path in named:
        assert (readme.parent / path).exists(), path
    own = {path.name for path in readme.parent.iterdir() if not path.name.startswith((".", "__"))} - {"README.md"}
    assert own - {"py.typed"} <= set(named), own - set(named)


def test_the_map_at_the_top_names_all_packages():
    (shown,) = [block.text for block in blocks(ROOT / "README.md") if re.match(r"metaopt/ ", block.text)]
    assert re.findall(r"^([\w/]+)/ ", shown, re.MULTILINE) == [
        "metaopt",
        "tasks",
        "meta_train",
        "checkpoints",
        "slurm",
        "tests",
    ]
