"""Run with a built wheel on the path, away from the tree: does it stand on its own?"""

import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp

import meta_train
import metaopt

wheel = Path(metaopt.__file__).parents[1]
assert wheel == Path(meta_train.__file__).parents[1] and not (wheel / "pyproject.toml").exists(), wheel
names = metaopt.list_pretrained()
assert "small-fc-images" in names, names
tx = metaopt.load("small-fc-images", num_steps=100)
params = {"w": jnp.ones((4, 3))}
updates, _ = jax.jit(tx.update)(params, tx.init(params), params, value=1.0)
assert bool(jnp.all(jnp.isfinite(updates["w"])))
with tempfile.TemporaryDirectory() as folder:
    settings = ["outer_steps=20", "save_every=20", "--dir", f"{folder}/run"]
    subprocess.run([sys.executable, "-m", "meta_train.cli", "train", "quadratics", *settings], check=True)
    submit = ["submit", "train", "quadratics", "--dir", f"{folder}/other", "--dry-run"]
    printed = subprocess.check_output([sys.executable, "-m", "meta_train.cli", *submit], text=True)
    script = next(Path(word) for word in printed.split() if word.endswith("meta_train.sbatch"))
    assert script.is_relative_to(wheel) and (script.parent / "requeue.sh").is_file(), printed
    subprocess.run([sys.executable, "-m", "meta_train.cli", "info", "small-fc-images"], check=True, capture_output=True)
print(f"the wheel in {wheel} works")
