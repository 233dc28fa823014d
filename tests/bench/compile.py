"""Seconds to compile a training step's update with every family, beside ``optax.adam`` in the same run.

Lowering and compiling, without a cache. The networks: dense ones of three and of seven layers, the
transformer of ``update``, and trees that only count leaves: 100 of one shape, 30 of 30 shapes, 1,000 of 20.
"""

import json

import jax
import optax

from metaopt import families
from tests.bench.update import FAMILIES, build, transformer

Shapes = dict[str, tuple[int, ...]]


def main() -> None:
    jax.config.update("jax_enable_compilation_cache", False)
    for network, shapes in networks().items():
        compare(network, shapes)


def networks() -> dict[str, Shapes]:
    return {
        "3 layers": dense(784, 256, 128, 10),
        "7 layers": dense(784, 256, 256, 128, 128, 64, 64, 10),
        "transformer": transformer(),
        "100 leaves of one shape": {f"{i:03d}": (5, 3) for i in range(100)},
        "30 leaves of 30 shapes": numbered([(3 + i, 4) for i in range(15)] + [(5 + i,) for i in range(15)]),
        "1,000 leaves of 20 shapes": thousand_leaves(),
    }


def dense(*widths: int) -> Shapes:
    """The weights and biases of a dense network."""
    layers = list(zip(widths, widths[1:], strict=False))
    return {f"w{i}": shape for i, shape in enumerate(layers)} | {f"b{i}": (out,) for i, (_, out) in enumerate(layers)}


def thousand_leaves() -> Shapes:
    matrices, vectors = [(3 + i, 4) for i in range(10)], [(5 + i,) for i in range(8)]
    return numbered(50 * [*matrices, *vectors, (), (2, 3, 4)])


def numbered(shapes: list[tuple[int, ...]]) -> Shapes:
    return {f"{i:04d}": shape for i, shape in enumerate(shapes)}


def compare(network: str, shapes: Shapes) -> None:
    """Prints a row for Adam and for each family."""
    adam = build(optax.with_extra_args_support(optax.adam(1e-3)), shapes)["compile_s"]
    print_row(network, len(shapes), "adam", adam, adam)
    for name, (family, settings) in FAMILIES.items():
        optimizer = families.build(family, **settings)
        tx = optimizer.bind(optimizer.init(jax.random.key(0)), num_steps=1000)
        print_row(network, len(shapes), name, build(tx, shapes)["compile_s"], adam)


def print_row(network: str, leaves: int, optimizer: str, seconds: float, adam: float) -> None:
    row = {
        "bench": "compile",
        "network": network,
        "leaves": leaves,
        "optimizer": optimizer,
        "compile_s": round(seconds, 2),
        "times_adam": round(seconds / adam, 1),
    }
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
