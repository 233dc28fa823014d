"""Where the time of one update goes: 1 million parameters, one thing after the other left out of the optimizer.

The matrices of ``tests.bench.update``. The time of a thing is what the update loses without it:
the per-parameter network with its features, the normalizers (a mean square for each
feature), and what is left, the accumulators and what is done for each tensor.
"""

import contextlib
import json
import statistics
from unittest import mock

import jax

from metaopt import families
from tests.bench import update

NAMES = ("small_fc", "celo", "celo2-base", "velo", "mulo")
SIZE, REPEATS = 1_000_000, 15


def main() -> None:
    from metaopt.nn import mlp
    from metaopt.optimizers.common import per_parameter

    jax.config.update("jax_enable_compilation_cache", False)
    ones = lambda channels, inputs, *_: [1.0] * len(channels(inputs))
    # Each leaves out more than the one before.
    no_normalizers = mock.patch.object(per_parameter, "normalizers", ones)
    no_network = mock.patch.object(mlp, "apply", lambda weights, channels, shape: channels[: weights["b2"].shape[-1]])
    for name in NAMES:
        steps = {
            "all": build(name, contextlib.nullcontext()),
            "no normalizers": build(name, no_normalizers),
            "no network": build(name, no_normalizers, no_network),
        }
        times = {key: [] for key in steps}
        for _ in range(REPEATS):  # alternating, so that a busy moment hits all alike
            for key, run in steps.items():
                times[key].append(run())
        ms = {key: 1e3 * statistics.median(t) for key, t in times.items()}
        row = {
            "bench": "update breakdown",
            "optimizer": name,
            "ms": round(ms["all"], 1),
            "network": round(ms["no normalizers"] - ms["no network"], 1),
            "normalizers": round(ms["all"] - ms["no normalizers"], 1),
            "accumulators and tensors": round(ms["no network"], 1),
        }
        print(json.dumps(row), flush=True)


def build(name: str, *patches):
    """``() -> seconds`` of an update, compiled under the patches."""

    family, settings = update.FAMILIES[name]
    optimizer = families.build(family, **settings)
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        tx = optimizer.bind(optimizer.init(jax.random.key(0)), num_steps=1000)
        return update.build(tx, update.matrices(SIZE))["run"]


if __name__ == "__main__":
    main()
