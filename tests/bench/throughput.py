"""Inner steps per second of meta-training: a learned optimizer, Adam and SGD, side by side.

PES on the digits network 64-32-10, batch 64, 32 pairs, window 50, horizon log-uniform
100 to 1000; the meta-loss is the training loss. Every inner step of both members of a
pair counts; drawing batches, resets, noise and the outer step are all inside.
"""

import json
import statistics
import sys
import time

import jax

NUM_PAIRS, WINDOW, OUTER_STEPS, REPEATS = 32, 50, 4, 7
OPTIMIZERS = {
    "small_fc": ("small_fc", {"hidden": 4}),
    "adam": ("hand", {"rule": "adam"}),
    "sgd": ("hand", {"rule": "sgd"}),
}


def main(num_devices: int) -> None:
    jax.config.update("jax_num_cpu_devices", num_devices)
    jax.config.update("jax_enable_compilation_cache", False)  # compile times are part of the result
    loops = {name: build(*chosen) for name, chosen in OPTIMIZERS.items()}
    times = {name: [] for name in loops}
    for _ in range(REPEATS):  # alternating, so that a busy moment hits all alike
        for name, loop in loops.items():
            times[name].append(loop["run"]())
    inner_steps = 2 * NUM_PAIRS * WINDOW * OUTER_STEPS
    rates = {name: inner_steps / statistics.median(t) for name, t in times.items()}
    for name, loop in loops.items():
        row = {
            "bench": "meta-training",
            "optimizer": name,
            "devices": num_devices,
            "inner_steps_per_s": round(rates[name]),
            "best": round(inner_steps / min(times[name])),
            "share_of_adam_loop": round(rates[name] / rates["adam"], 3),
            "compile_s": round(loop["compile_s"], 1),
        }
        print(json.dumps(row), flush=True)


def build(family: str, settings: dict) -> dict:
    from meta_train import outer
    from meta_train.estimators import ESTIMATORS
    from meta_train.estimators.samples import Sampling
    from meta_train.inner import episodes
    from meta_train.inner.episodes import Episodes
    from meta_train.outer import OuterLoop
    from meta_train.parallel import devices
    from metaopt import families
    from tasks import ImageMLP

    optimizer, mesh = families.build(family, **settings), devices.mesh()
    inner = Episodes(100, 1000, split="train", objective="linear")
    problem = episodes.build(optimizer, ImageMLP(width=32, depth=1, batch_size=64), inner, WINDOW)
    estimator = ESTIMATORS["pes"](problem, Sampling(NUM_PAIRS, WINDOW), mesh)
    program = outer.build([estimator], outer.optimizer(OuterLoop()), 1.0)
    init = lambda: program.init(optimizer.init(jax.random.key(0)), jax.random.key(1))
    state = jax.jit(init, out_shardings=outer.shardings(mesh))()
    began = time.perf_counter()
    dispatch = outer.build_dispatch(program, OUTER_STEPS, mesh).lower(state).compile()
    compile_s = time.perf_counter() - began

    def run() -> float:
        nonlocal state
        began = time.perf_counter()
        state, metrics = dispatch(state)
        jax.block_until_ready(metrics)
        return time.perf_counter() - began

    run()
    return {"run": run, "compile_s": compile_s}


if __name__ == "__main__":
    main(int(sys.argv[1]))
