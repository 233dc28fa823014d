"""Replay of muLO: small_fc under muP multipliers, as in bentherien/mu_learned_optimization."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metaopt import families, mup
from tests.golden.per_parameter import worst

RTOL, ATOL = 1e-5, 2e-6  # on parameters, from mulo_celo.md
RUNS = ("a", "b", "sp")


def replay(path) -> list[tuple[str, float]]:
    """Feeds the stored gradients; returns the largest error over steps and tensors of each run."""
    data = np.load(path)
    read = lambda prefix: {k.rsplit("/", 1)[1]: jnp.asarray(data[k]) for k in data.files if k.startswith(prefix)}
    theta = {
        "momentum_decays": jnp.asarray(data["theta/momentum_decays"]),
        "rms_decays": jnp.asarray(data["theta/rms_decays"]),
        "factored_decays": jnp.asarray(data["theta/adafactor_decays"]),
        "network": {f"{kind}{i}": jnp.asarray(data[f"theta/nn.~.{kind}{i}"]) for i in range(3) for kind in "wb"},
    }
    cases = []
    for run in RUNS:
        scales = {f"{name}_multiplier": float(data[f"{run}/{name}_mult"]) for name in ("exp", "step")}
        optimizer = families.build("small_fc", hidden=32, **scales)
        tx = optax.chain(optimizer.bind(theta), mup.scale_updates(read(f"{run}/mup_lr/")))
        params, errors = read("params0/"), []
        state, update = tx.init(params), jax.jit(tx.update)
        for t in range(len(data["losses"])):
            updates, state = update(read(f"grads/{t}/"), state, params)
            params = jax.tree.map(jnp.add, params, updates)
            errors += [worst(p, data[f"{run}/params/{t}/{leaf}"], RTOL, ATOL) for leaf, p in params.items()]
        cases.append((run, max(errors)))
    return cases
