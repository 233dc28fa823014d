"""Replays of Celo, Celo2 and ELO: amoudgl/celo and Belilovsky-Lab/pylo."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metaopt import optimizers
from tests.golden.per_parameter import worst
from tests.golden.velo import read_network, read_theta

RTOL, ATOL = 1e-5, 2e-6  # on parameters, from mulo_celo.md


def replay_trajectory(data, run: str, tx) -> float:
    """Feeds the stored gradients and losses; the worst error over steps and tensors."""
    params, errors = read_tree(data, "params0/"), []
    state, update = tx.init(params), jax.jit(tx.update)
    losses = data["losses"] if "losses" in data.files else np.zeros(6, np.float32)
    for t, loss in enumerate(losses):
        updates, state = update(read_tree(data, f"grads/{t}/"), state, params, value=loss)
        params = optax.apply_updates(params, updates)
        errors += [worst(p, data[f"{run}/params/{t}/{leaf}"], RTOL, ATOL) for leaf, p in params.items()]
    return max(errors)


def read_tree(data, prefix: str) -> dict:
    return {name.removeprefix(prefix): jnp.asarray(data[name]) for name in data.files if name.startswith(prefix)}


def replay_celo(path) -> list[tuple[str, float]]:
    """With the scheduler, and without: the two phases of its meta-training."""
    data = np.load(path)
    theirs = read_theta(lambda name: data[f"theta/{name}"])
    network = {name: w[0] for name, w in theirs["bank"].items()}  # a bank of one
    scheduler = {name: theirs[name] for name in ("pooled", "direct", "lstm", "initial", "step_size")}
    thetas = {"phase1": {"network": network}, "phase2": {"network": network, "scheduler": scheduler}}
    bind = lambda run: optimizers.build("celo", scheduled=run == "phase2").bind(thetas[run], int(data["num_steps"]))
    return [(run, replay_trajectory(data, run, bind(run))) for run in thetas]


def replay_celo2(path) -> list[tuple[str, float]]:
    """The learned rule alone; orthogonalised; with AdamW; on a schedule; as it is meta-trained."""
    data = np.load(path)
    network = read_network(lambda name: data[f"theta/ff_mod_stack.~.{name}"], num_out=1)
    rate, decay = float(data["lr"]), float(data["weight_decay"])
    schedule = lambda step: jnp.asarray(data["schedule_values"])[step] / rate
    runs = {
        "base": (dict(orthogonalise=False, vectors="learned", weight_decay=decay), ()),
        "orth_all": (dict(vectors="learned"), ()),
        "full": (dict(weight_decay=decay), ()),
        "full_sched": (dict(weight_decay=decay), (optax.scale_by_schedule(schedule),)),
        "meta_harness": (dict(vectors="adam_uncorrected"), ()),
    }
    cases = []
    for run, (settings, after) in runs.items():
        if f"{run}/params/0/{data.files[0].split('/')[1]}" not in data.files:
            continue  # the harness is in the main file only
        optimizer = optimizers.build("celo2", learning_rate=rate, **settings)
        tx = optax.chain(optimizer.bind({"network": network}), *after)
        cases.append((run, replay_trajectory(data, run, tx)))
    return cases
