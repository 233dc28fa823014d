"""What each estimator costs per inner step, and reverse mode against a plain jax.grad.

The learned optimizer ``small_fc`` (hidden 4) on the digits network 64-32-10, batch 64,
windows of 50 steps, training loss, one device. Inner steps are those of all members, so
"per_step" compares what an estimator adds to running its members; it is relative to
PES. Reverse mode is compared with ``jax.grad`` of the same scan of steps from the same
states, which keeps nothing and draws nothing.
"""

import json
import statistics
import time

import jax
import jax.numpy as jnp

NUM_SAMPLES, WINDOW, REPEATS = 16, 50, 7
NUM_DIFFERENTIATED = 4  # samples, in reverse mode
EVOLUTION = {"pes": {}, "es_single": {}, "gpes": {}, "es_gen": {}, "truncated_es": {}, "es": {}}
REVERSE = {"tbptt": {}, "bmg": {}, "bmg, kl": {"matching": "kl"}}


def main() -> None:
    problem, theta = build_problem()
    runs = {name: compiled(name, problem, theta, NUM_SAMPLES, 0.01, options) for name, options in EVOLUTION.items()}
    times, steps = measure(runs)
    per_step = {name: statistics.median(t) / steps[name] for name, t in times.items()}
    for name in EVOLUTION:
        row = {
            "bench": "evolution strategies",
            "estimator": name,
            "inner_steps_per_s": round(1 / per_step[name]),
            "per_step": round(
                statistics.median(a / b for a, b in zip(times[name], times["pes"], strict=True))
                * steps["pes"]
                / steps[name],
                3,
            ),
        }
        print(json.dumps(row), flush=True)
    runs = {
        name: compiled(name.partition(",")[0], problem, theta, NUM_DIFFERENTIATED, 0.0, options)
        for name, options in REVERSE.items()
    }
    runs["jax.grad"] = plain_gradient(problem, theta)
    times, steps = measure(runs)
    for name in runs:
        row = {
            "bench": "reverse mode",
            "estimator": name,
            "inner_steps_per_s": round(NUM_DIFFERENTIATED * WINDOW / statistics.median(times[name])),
            "to_jax_grad": round(
                statistics.median(a / b for a, b in zip(times[name], times["jax.grad"], strict=True)), 3
            ),
        }
        print(json.dumps(row), flush=True)


def build_problem():
    from meta_train.inner import episodes
    from meta_train.inner.episodes import Episodes
    from metaopt import families
    from tasks import ImageMLP

    optimizer = families.build("small_fc", hidden=4)
    config = Episodes(500, 500, split="train", objective="linear")
    problem = episodes.build(optimizer, ImageMLP(width=32, depth=1, batch_size=64), config, WINDOW)
    return problem, optimizer.init(jax.random.key(0))


def compiled(name: str, problem, theta, num_samples: int, sigma: float, options: dict):
    """Returns ``() -> inner steps``: one estimate, its state kept for the next."""
    from meta_train.estimators import ESTIMATORS
    from meta_train.estimators.samples import Sampling
    from meta_train.parallel import devices

    estimator = ESTIMATORS[name](problem, Sampling(num_samples, WINDOW, sigma), devices.mesh(1), **options)
    state = jax.jit(estimator.init)(theta, jax.random.key(1))
    estimate = jax.jit(estimator.estimate, donate_argnums=1)

    def run():
        nonlocal state
        grad, state, metrics = estimate(theta, state, 0)
        jax.block_until_ready(grad)
        return float(metrics["inner_steps"])

    return run


def plain_gradient(problem, theta):
    """The gradient of the mean loss of a window, averaged over states, and nothing else."""

    def window_loss(theta, episode):
        step = jax.checkpoint(lambda episode, _: problem.step(theta, episode))
        return jnp.mean(jax.lax.scan(step, episode, length=WINDOW)[1])

    @jax.jit
    def gradient(theta, episodes):
        grads = jax.vmap(jax.grad(window_loss), (None, 0))(theta, episodes)
        return jax.tree.map(lambda g: jnp.mean(g, axis=0), grads)

    keys = jax.random.split(jax.random.key(1), NUM_DIFFERENTIATED)
    episodes = jax.jit(jax.vmap(lambda key: problem.reset(theta, key, 0)))(keys)

    def run():
        jax.block_until_ready(gradient(theta, episodes))
        return float(NUM_DIFFERENTIATED * WINDOW)

    return run


def measure(runs: dict):
    """(seconds of every repeat, inner steps of one) by name; repeats alternate."""
    times, steps = {name: [] for name in runs}, {}
    for run in runs.values():
        for _ in range(2):  # the state that the first call returns lies elsewhere than the one it was given
            run()
    for _ in range(REPEATS):
        for name, run in runs.items():
            began = time.perf_counter()
            steps[name] = run()
            times[name].append(time.perf_counter() - began)
    return times, steps


if __name__ == "__main__":
    main()
