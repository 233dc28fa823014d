"""Replay of drifts, on a grid of ratios and advantages, and of generalized advantages."""

import jax
import jax.numpy as jnp
import numpy as np

from metaopt import families
from tasks import advantages

ABSOLUTE, RELATIVE = 2e-5, 1e-4  # tolerances, from rl_drift.md
ADVANTAGE_TOLERANCE = 2e-5  # float32 sums of twelve terms; the file was computed in float64


def replay(path) -> list[tuple[str, float]]:
    """Values of each drift, and derivatives by the ratio."""
    data = np.load(path)
    networks = {name: {"w0": data[f"{name}_w1"], "w1": data[f"{name}_w2"]} for name in ("lpo", "talpo")}
    cases = []
    for name in ("ppo", "dpo"):
        learned = families.build(name)
        cases += _compare(data, name, "", learned.bind(learned.init(jax.random.key(0))), [0.0])
    for seeded, suffix in ((True, "_pposeeded"), (False, "_plain")):
        for family, name, progress in (("lpo", "lpo", [0.0]), ("ta_lpo", "talpo", data["talpo_progress"])):
            drift = families.build(family, ppo_seeded=seeded).bind(networks[name])
            cases += _compare(data, name, suffix, drift, progress)
    return cases


def replay_gae(path) -> list[tuple[str, float]]:
    """Advantages and targets, by the correct rule and by the one that takes every end for good."""
    data = np.load(path)
    terminated, truncated = data["terminated"] > 0, data["truncated"] > 0
    done = terminated | truncated
    after = np.concatenate([data["value"][1:], data["bootstrap_value"][None]])
    after = np.where(done, data["value_final_obs"], after)
    cases = []
    for rule, ended in (("bootstrap", terminated), ("done", done)):
        found = advantages.generalized(
            data["reward"], data["value"], after, ended, done, float(data["gamma"]), float(data["lam"])
        )
        for name, x, y in (
            ("adv", found, data[f"adv_{rule}"]),
            ("target", found + data["value"], data[f"target_{rule}"]),
        ):
            cases.append((f"{name} {rule}", float(np.max(np.abs(x - y))) / ADVANTAGE_TOLERANCE))
    return cases


def _compare(data, name: str, suffix: str, drift, progress) -> list[tuple[str, float]]:
    def of_ratio(ratio, advantage, u):
        return drift(jnp.log(ratio), advantage, progress=u)

    over_grid = jax.vmap(jax.vmap(jax.value_and_grad(of_ratio), (None, 0, None)), (0, None, None))
    found = [jax.jit(over_grid)(data["ratio"], data["advantage"], u) for u in progress]
    cases = []
    for what, x in zip(("drift", "ddrift_dr"), map(np.stack, zip(*found, strict=True)), strict=True):
        expected = data[f"{name}_{what}{suffix}"]
        error = np.abs(x.reshape(expected.shape) - expected) / (ABSOLUTE + RELATIVE * np.abs(expected))
        cases.append((f"{name}{suffix} {what}", float(np.max(error))))
    return cases
