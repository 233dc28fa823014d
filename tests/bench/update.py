"""Time and memory of one jitted update of every family, against ``optax.adam`` in the same run.

Two networks: two square matrices with their biases, at three sizes; and a transformer with
98 tensors, most of them vectors, where what is done for each tensor counts. Parameters and
state are donated, the updates applied. Times are medians of alternating repeats.
"""

import json
import statistics
import time

import jax
import jax.numpy as jnp
import optax

from metaopt import families

SIZES = (10_000, 1_000_000, 10_000_000)
REPEATS = 15
# The sizes that were published: VeLO's, Celo's, Celo2's, muLO's, OPEN's.
FAMILIES = {
    "small_fc": ("small_fc", {}),
    "mulo": ("small_fc", {"hidden": 32}),
    "mlp": ("mlp", {}),
    "celo2-base": ("celo2", {"orthogonalize": False, "vectors": "learned"}),
    "celo2": ("celo2", {}),
    "celo": ("celo", {}),
    "celo-adam": ("celo", {"rule": "adam"}),
    "velo": ("velo", {"hidden": 512, "bank": 256}),
    "l2o_pa": ("l2o_pa", {}),
    "rnnprop": ("coordinate_lstm", {"rule": "rnnprop"}),
    "open": ("open", {}),
}


def main() -> None:
    jax.config.update("jax_enable_compilation_cache", False)
    for size in SIZES:
        compare(f"{size:,}", matrices(size))
    compare("transformer", transformer())


def matrices(size: int) -> dict[str, tuple[int, ...]]:
    width = int((size / 2) ** 0.5)
    return {"w1": (width, width), "b1": (width,), "w2": (width, width), "b2": (width,)}


def transformer(width: int = 128, depth: int = 6) -> dict[str, tuple[int, ...]]:
    """The shapes of a network with 1.3 million parameters in 98 tensors."""
    block = {name: (width, width) for name in ("query", "key", "value", "out")}
    block |= {"up": (width, 4 * width), "down": (4 * width, width), "up_bias": (4 * width,)}
    vectors = (
        "query_bias",
        "key_bias",
        "value_bias",
        "out_bias",
        "down_bias",
        "scale_1",
        "shift_1",
        "scale_2",
        "shift_2",
    )
    block |= {name: (width,) for name in vectors}
    layers = {f"{layer}/{name}": shape for layer in range(depth) for name, shape in block.items()}
    return {"embed": (1000, width), "position": (128, width)} | layers


def compare(network: str, shapes: dict[str, tuple[int, ...]]) -> None:
    """Prints a row for each family."""

    steps = {"adam": build(optax.with_extra_args_support(optax.adam(1e-3)), shapes)}
    for name, (family, settings) in FAMILIES.items():
        optimizer = families.build(family, **settings)
        steps[name] = build(optimizer.bind(optimizer.init(jax.random.key(0)), num_steps=1000), shapes)
    times = {name: [] for name in steps}
    for _ in range(REPEATS):
        for name, step in steps.items():
            times[name].append(step["run"]())
    adam = statistics.median(times["adam"])
    for name, step in steps.items():
        median = statistics.median(times[name])
        row = {
            "bench": "update",
            "network": network,
            "optimizer": name,
            "params": step["num_params"],
            "ms": round(1e3 * median, 3),
            "times_adam": round(median / adam, 1),
            "temp_bytes_per_param": round(step["temp_bytes"] / step["num_params"], 1),
            "compile_s": round(step["compile_s"], 1),
        }
        print(json.dumps(row), flush=True)


def build(tx, shapes: dict[str, tuple[int, ...]]) -> dict:
    def draw(seed: int):
        keys = jax.random.split(jax.random.key(seed), len(shapes))
        return {
            name: 0.1 * jax.random.normal(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params, value=jnp.float32(1.0))
        return optax.apply_updates(params, updates), state

    params, grads = draw(0), draw(1)
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
