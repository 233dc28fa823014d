"""Where the time of an inner step goes: the loop with one thing after the other left out of the learned optimizer.

64 members of a digits network 64-32-10, batch 64, 50 inner steps in one compiled scan on
one device; microseconds for each member and step. The time of a thing is what the loop loses
without it, so the rows add up: the network being trained (the loop with SGD),
``small_fc``'s accumulators, its normalizers (a mean square for each feature) and its
per-parameter network with the features themselves.
"""

import contextlib
import json
import statistics
import time
from unittest import mock

import jax

NUM_MEMBERS, WINDOW, REPEATS = 64, 50, 15


def main() -> None:
    from metaopt.nn import mlp
    from metaopt.optimizers.common import per_parameter

    # Each leaves out more than the one before.
    no_normalizers = mock.patch.object(
        per_parameter, "normalizers", lambda channels, inputs, *_: [1.0] * len(channels(inputs))
    )
    no_network = mock.patch.object(mlp, "apply", lambda weights, channels, shape: channels[:2])
    everything = contextlib.nullcontext()
    loops = {
        "small_fc": build("small_fc", {"hidden": 4}, [everything]),
        "no normalizers": build("small_fc", {"hidden": 4}, [no_normalizers]),
        "no network": build("small_fc", {"hidden": 4}, [no_normalizers, no_network]),
        "sgd": build("hand", {"rule": "sgd"}, [everything]),
        "adam": build("hand", {"rule": "adam"}, [everything]),
    }
    times = {name: [] for name in loops}
    for _ in range(REPEATS):  # alternating, so that a busy moment hits all alike
        for name, loop in loops.items():
            times[name].append(loop())
    us = {name: 1e6 * statistics.median(t) / (NUM_MEMBERS * WINDOW) for name, t in times.items()}
    shares = {
        "training the network (SGD)": us["sgd"],
        "accumulators": us["no network"] - us["sgd"],
        "features and network": us["no normalizers"] - us["no network"],
        "normalizers": us["small_fc"] - us["no normalizers"],
    }
    for name, value in (shares | {f"all of {name}": us[name] for name in ("small_fc", "adam")}).items():
        share = round(value / us["small_fc"], 2)
        print(json.dumps({"bench": "inner step", "time of": name, "us": round(value, 1), "share": share}))


def build(family: str, settings: dict, patches: list):
    """Returns ``() -> seconds`` of one compiled window of all members."""
    from meta_train.inner import episodes
    from meta_train.inner.episodes import Episodes
    from metaopt import families
    from tasks import ImageMLP

    optimizer = families.build(family, **settings)
    config = Episodes(500, 500, split="train", objective="linear")
    problem = episodes.build(optimizer, ImageMLP(width=32, depth=1, batch_size=64), config, WINDOW)
    theta = optimizer.init(jax.random.key(0))
    noise = lambda t: t + 0.01 * jax.random.normal(jax.random.key(1), (NUM_MEMBERS, *t.shape))
    thetas = jax.tree.map(noise, theta)  # no two members alike, as in evolution strategies
    step = jax.vmap(lambda theta, episode: problem.step(theta, episode)[0])
    window = jax.jit(lambda thetas, e: jax.lax.scan(lambda e, _: (step(thetas, e), None), e, length=WINDOW)[0])
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        start = jax.vmap(problem.reset, (0, None, None))(thetas, jax.random.key(0), 0)
        jax.block_until_ready(window(thetas, start))

    def run() -> float:
        began = time.perf_counter()
        jax.block_until_ready(window(thetas, start))
        return time.perf_counter() - began

    return run


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 1)
    main()
