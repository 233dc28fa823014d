"""Eight fake CPU devices and a compilation cache for every test."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ["METAOPT_OFFLINE"] = "1"

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
