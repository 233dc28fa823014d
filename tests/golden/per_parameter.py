"""Replays of the per-parameter MLP optimizers of google/learned_optimization."""

import jax
import jax.numpy as jnp
import numpy as np

from metaopt import families
from metaopt.core import Learned, Theta

RTOL, ATOL = 1e-4, 2e-6  # on parameters, from velo_golden.md
SCENARIOS = ("main", "stress", "late")


def worst(actual: jax.Array, expected: np.ndarray, rtol: float, atol: float) -> float:
    """Largest ``|actual - expected| / (atol + rtol * |expected|)``; infinite if not finite."""
    error = np.abs(np.asarray(actual, np.float64) - expected) / (atol + rtol * np.abs(expected))
    return float(np.max(np.where(np.isfinite(error), error, np.inf), initial=0.0))


def replay_scenarios(data, variant: str, optimizer: Learned, theta: Theta) -> list[tuple[str, float]]:
    """Feeds the stored gradients of every scenario; returns the largest error over steps and tensors of each."""

    @jax.jit
    def step(params, state, grads, loss, num_steps):
        updates, state = optimizer.bind(theta, num_steps=num_steps).update(grads, state, params, value=loss)
        return jax.tree.map(jnp.add, params, updates), state

    cases = []
    for scenario in SCENARIOS:
        read = lambda prefix: {k.rsplit("/", 1)[1]: data[k] for k in data.files if k.startswith(prefix)}
        params = jax.tree.map(jnp.asarray, read(f"in/{scenario}/params/"))
        grads, expected = read(f"in/{scenario}/grads/"), read(f"{variant}/{scenario}/params/")
        num_steps = jnp.asarray(data[f"in/{scenario}/num_steps"], jnp.int32)
        state = optimizer.bind(theta, num_steps=num_steps).init(params)
        state = state._replace(step=jnp.asarray(data[f"in/{scenario}/start_iteration"], jnp.int32))
        errors = []
        for t, loss in enumerate(data[f"in/{scenario}/loss"]):
            params, state = step(params, state, {k: g[t] for k, g in grads.items()}, loss, num_steps)
            errors += [worst(params[k], expected[k][t], RTOL, ATOL) for k in params]
        cases.append((f"{variant}/{scenario}", max(errors)))
    return cases


def replay_mlp(path) -> list[tuple[str, float]]:
    """MLPLOpt with its default sizes."""
    data = np.load(path)
    layers = {
        f"{kind}{i}": jnp.asarray(data[f"default/theta/mlp/~/linear_{i}|{kind}"]) for i in range(3) for kind in "wb"
    }
    optimizer = families.build("mlp")
    return replay_scenarios(data, "default", optimizer, {"network": layers})


def replay_small_fc(path) -> list[tuple[str, float]]:
    """AdafacMLPLOpt with 4 and with 32 hidden units."""
    data, cases = np.load(path), []
    for variant in ("h4", "h32"):
        read = lambda name, v=variant: jnp.asarray(data[f"{v}/theta/{name}"])
        theta = {
            "momentum_decays": read("momentum_decays"),
            "rms_decays": read("rms_decays"),
            "factored_decays": read("adafactor_decays"),
            "network": {f"{kind}{i}": read(f"nn|~|{kind}{i}") for i in range(3) for kind in "wb"},
        }
        optimizer = families.build("small_fc", hidden=int(variant[1:]))
        cases += replay_scenarios(data, variant, optimizer, theta)
    return cases
