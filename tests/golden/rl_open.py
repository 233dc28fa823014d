"""Replay of OPEN, the optimizer of AlexGoldie/rl-learned-optimization."""

import jax
import jax.numpy as jnp
import numpy as np

from metaopt import families

TOLERANCE = 1e-6  # on parameters, absolute, from rl_open.md
NETWORKS = ("actor", "critic")


def theta_of(read) -> dict:
    """The reference's theta under our names; ``read(name)`` returns an array of it."""
    gate = lambda name: read(f"gru_params.params.{name}")
    layer = lambda i, name: read(f"params.params.layers_{i}.{name}")
    side_by_side = lambda prefix, name: jnp.concatenate([gate(f"{prefix}{g}.{name}") for g in "rzn"], axis=-1)
    norms = {
        f"{ours}{i}": layer(3 * i + 1, name) for i in range(2) for ours, name in (("scale", "scale"), ("shift", "bias"))
    }
    dense = {f"{ours}{i}": layer(3 * i, name) for i in range(3) for ours, name in (("w", "kernel"), ("b", "bias"))}
    return {
        "gru": {
            "wi": side_by_side("i", "kernel"),
            "bi": side_by_side("i", "bias"),
            "wh": side_by_side("h", "kernel"),
            "bh": gate("hn.bias"),
        },
        "mlp": dense | norms,
    }


def tree_of(data, prefix: str) -> dict:
    """The nested dictionary of the entries ``prefix.a.b.c``."""
    tree: dict = {}
    for name in data.files:
        if name.startswith(prefix):
            *path, last = name.removeprefix(prefix).split(".")
            branch = tree
            for key in path:
                branch = branch.setdefault(key, {})
            branch[last] = jnp.asarray(data[name])
    return tree


def activations_of(data, step: int) -> dict:
    """The stored activations, in the tree that our optimizer expects for Flax modules."""
    layers = lambda net: sorted(tree_of(data, f"step{step}.act.{net}.").items())
    return {net: {"params": {f"Dense_{i}": a for i, a in layers(net)}} for net in NETWORKS}


def replay(path) -> list[tuple[str, float]]:
    """Four steps of an actor and a critic with the stored noise."""
    data = np.load(path)
    num_minibatches, num_epochs, num_updates = (
        int(data[name]) for name in ("num_minibatches", "update_epochs", "num_updates")
    )
    optimizer = families.build("open", num_minibatches=num_minibatches, num_epochs=num_epochs)
    theta = theta_of(lambda name: jnp.asarray(data[f"theta.{name}"]))
    tx = optimizer.bind(theta, num_steps=num_minibatches * num_epochs * num_updates)
    params = tree_of(data, "params0.")
    state, update = tx.init(params), jax.jit(tx.update)
    within = lambda ours, theirs: max(
        float(np.max(np.abs(a - b))) / TOLERANCE
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    )
    cases = []
    for t in range(4):
        grads, noise = tree_of(data, f"step{t}.grad."), tree_of(data, f"step{t}.noise.")
        updates, state = update(grads, state, params, activations=activations_of(data, t), noise=noise)
        params = jax.tree.map(jnp.add, params, updates)
        cases.append((f"step {t}", within(params, tree_of(data, f"step{t}.params."))))
    # The state is of the size of 1 and four steps old: a few units in the last place more.
    return [*cases, ("state of the GRU", within(state.hidden, tree_of(data, "carry_final.")) / 3)]
