"""Time and memory of one jitted update, against ``optax.adam`` in the same run.

Two square weight matrices and two bias vectors; parameters and state are donated, the
updates applied. Times are medians of alternating repeats.
"""

import json
import statistics
import time

import jax
import jax.numpy as jnp
import optax

SIZES = (10_000, 1_000_000, 10_000_000)
REPEATS = 15


def main() -> None:
    from metaopt import optimizers

    jax.config.update("jax_enable_compilation_cache", False)
    for size in SIZES:
        steps = {"adam": build(optax.with_extra_args_support(optax.adam(1e-3)), size)}
        for family, settings in (("small_fc", {}), ("small_fc", {"hidden": 8}), ("mlp", {})):
            optimizer = optimizers.build(family, **settings)
            name = "-".join([family, *map(str, settings.values())])
            steps[name] = build(optimizer.bind(optimizer.init(jax.random.key(0)), num_steps=1000), size)
        times = {name: [] for name in steps}
        for _ in range(REPEATS):
            for name, step in steps.items():
                times[name].append(step["run"]())
        adam = statistics.median(times["adam"])
        for name, step in steps.items():
            median = statistics.median(times[name])
            row = {
                "bench": "update",
                "optimizer": name,
                "params": step["num_params"],
                "ms": round(1e3 * median, 3),
                "times_adam": round(median / adam, 1),
                "temp_bytes_per_param": round(step["temp_bytes"] / step["num_params"], 1),
                "compile_s": round(step["compile_s"], 1),
            }
            print(json.dumps(row), flush=True)


def build(tx, size: int) -> dict:
    width = int((size / 2) ** 0.5)
    draw = lambda seed: {
        "w1": jax.random.normal(jax.random.key(seed), (width, width)) * 0.1,
        "b1": jnp.zeros(width),
        "w2": jax.random.normal(jax.random.key(seed + 1), (width, width)) * 0.1,
        "b2": jnp.zeros(width),
    }

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params, value=jnp.float32(1.0))
        return optax.apply_updates(params, updates), state

    params, grads = draw(0), draw(2)
    carry = (params, tx.init(params))
    began = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*carry, grads).compile()
    compile_s = time.perf_counter() - began

    def run() -> float:
        nonlocal carry
        began = time.perf_counter()
        carry = compiled(*carry, grads)
        jax.block_until_ready(carry)
        return time.perf_counter() - began

    run()
    return {
        "run": run,
        "compile_s": compile_s,
        "num_params": sum(p.size for p in jax.tree.leaves(grads)),
        "temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
    }


if __name__ == "__main__":
    main()
