"""One process of ``tests.bench.scale``: seconds of an outer step, of an all-reduce, of an agreement.

Run as a task of a step, or alone. The first process prints one JSON line.
"""

import json
import math
import os
import re
import statistics
import sys
import time

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from meta_train import program, recipes, settings
from meta_train.parallel import devices, processes

SECONDS = 12.0  # of measuring outer steps
REDUCED = (256, 65536, 1048576)  # float32 values of the measured all-reduces
REPEATS = 50


def main(samples_per_device: int, devices_per_process: int) -> None:
    task = int(os.environ.get("SLURM_PROCID", 0))
    # A device is a core: XLA would otherwise lend an idle one.
    os.sched_setaffinity(0, range(task * devices_per_process, (task + 1) * devices_per_process))
    alone = "SLURM_PROCID" not in os.environ
    devices.prepare(devices_per_process * samples_per_device, devices_per_process if alone else None)
    mesh = devices.mesh()
    recipe = settings.override(recipes.find("digits-quick"), [f"num_samples={samples_per_device * mesh.size}"])
    built = program.build(recipe, mesh)
    state = built.init()
    compiled = built.dispatch.lower(state).compile()
    row = {
        "processes": jax.process_count(),
        "devices": mesh.size,
        "samples_per_device": samples_per_device,
        "outer_step_s": _outer_step(compiled, state),
        "all_reduces": all_reduces(compiled.as_text()),
        "all_reduce_s": {4 * n: _all_reduce(mesh, n) for n in REDUCED},
        "agree_s": _median(lambda: processes.largest(0)),
    }
    if processes.is_first():
        print(json.dumps(row), flush=True)


def all_reduces(text: str) -> list[int]:
    """Bytes of every all-reduce in a compiled program; those in the body of a loop are there once."""
    found = re.findall(r"= (.*?) all-reduce(?:-start)?\(", text)
    sizes = [re.findall(r"[fsu]32\[([\d,]*)\]", shapes) for shapes in found]
    return [sum(4 * math.prod(int(n) for n in shape.split(",") if n) for shape in shapes) for shapes in sizes]


def _outer_step(compiled, state) -> float:
    """Median over dispatches."""

    def dispatch() -> float:
        nonlocal state
        start = time.perf_counter()
        state, metrics = compiled(state)
        steps = len(jax.device_get(metrics["meta_loss"]))
        return (time.perf_counter() - start) / steps

    dispatch()
    num = processes.largest(max(4, round(SECONDS / dispatch() / 10)))
    return statistics.median(dispatch() for _ in range(num))


def _all_reduce(mesh, size: int) -> float:
    """Seconds of one of ``size`` values, the first of which depends on the one before."""
    psum = lambda x: jax.lax.psum(x, devices.SAMPLE_AXIS) / mesh.size
    loop = lambda x: jax.lax.scan(lambda x, _: (psum(x), None), x, length=REPEATS)[0]
    reduce = jax.jit(jax.shard_map(loop, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False))
    ones = jax.jit(lambda: jnp.ones(size), out_shardings=jax.NamedSharding(mesh, P()))()
    return _median(lambda: reduce(ones).block_until_ready()) / REPEATS


def _median(f) -> float:
    f()
    times = []
    for _ in range(11):
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
