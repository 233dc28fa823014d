"""Recipes: found by name, by file and by module; none starts a backend."""

import subprocess
import sys

from meta_train import recipes

# What ``jax.distributed`` needs: nothing has made a device before it is called.
BUILD_ALL = """
from jax._src import xla_bridge
from meta_train import recipes, settings
for name in recipes.names():
    settings.to_json(recipes.find(name)), recipes.find(name).build_family(), recipes.find(name).build_tasks()
assert not xla_bridge._backends, list(xla_bridge._backends)
print(len(recipes.names()))
"""


def test_no_recipe_makes_a_device():
    done = subprocess.run([sys.executable, "-c", BUILD_ALL], capture_output=True, text=True)
    assert done.returncode == 0 and int(done.stdout) == len(recipes.names()), done.stderr


def test_a_run_is_called_like_its_recipe():
    assert recipes.label("digits-quick") == "digits-quick"
    assert recipes.label("/some where/my_recipe.py") == "my_recipe"
    assert recipes.label("./my_recipe.py:large") == "my_recipe-large"
    assert recipes.label("my_package.experiments:recipe") == "experiments"
    assert recipes.source_of("digits-quick") is None
