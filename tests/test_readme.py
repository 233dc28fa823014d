"""The README: its Python runs, its commands exist."""

import re
from pathlib import Path

import jax.numpy as jnp
import pytest

from meta_train import cli
from meta_train import recipe as recipes

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL), ids=lambda b: b.split("\n")[0])
def test_python_blocks_run(block):
    exec(block, {"params": {"w": jnp.ones((8, 16))}, "grads": {"w": jnp.ones((8, 16))}, "loss": jnp.float32(1.0)})


def test_every_command_parses():
    commands = re.findall(r"^metaopt ([^#\n]+)", README, re.MULTILINE)
    assert len(commands) >= 6
    for command in commands:
        arguments = cli.parse(command.split())
        if getattr(arguments, "recipe", None):
            recipes.override(recipes.find(arguments.recipe), arguments.settings)


def test_make_targets_exist():
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for target in re.findall(r"^make ([\w-]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
