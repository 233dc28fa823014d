"""Replays of Celo, Celo2 and ELO: amoudgl/celo and Belilovsky-Lab/pylo."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metaopt import compose, families, importers
from metaopt.importers import haiku, small_fc
from tests.golden.per_parameter import worst

RTOL, ATOL = 1e-5, 2e-6  # on parameters, from mulo_celo.md


def replay_trajectory(data, run: str, tx: optax.GradientTransformation) -> float:
    """Feeds the stored gradients and losses to ``tx``; returns the largest error over steps and tensors."""
    params, errors = read(data, "params0/"), []
    state, update = tx.init(params), jax.jit(tx.update)
    for t in range(6):
        loss = data["losses"][t] if "losses" in data.files else None
        updates, state = update(read(data, f"grads/{t}/"), state, params, value=loss)
        params = optax.apply_updates(params, updates)
        errors += [worst(p, data[f"{run}/params/{t}/{leaf}"], RTOL, ATOL) for leaf, p in params.items()]
    return max(errors)


def read(data, prefix: str, into: str = "") -> dict:
    """The entries whose names start with ``prefix``, which is replaced by ``into``; dots become slashes."""
    names = [name for name in data.files if name.startswith(prefix)]
    return {into + name.removeprefix(prefix).replace(".", "/"): jnp.asarray(data[name]) for name in names}


def replay_celo(path) -> list[tuple[str, float]]:
    """Celo without its scheduler and with it: the two phases of its meta-training."""
    data = np.load(path)
    found = importers.celo.convert(jax.tree.map(np.asarray, read(data, "theta/")))
    phases = {"phase1": {"network": found.theta["network"]}, "phase2": found.theta}
    cases = []
    for run, theta in phases.items():
        optimizer = families.build(found.family, **found.config, scheduled=run == "phase2")
        tx = optimizer.bind(jax.tree.map(jnp.asarray, theta), int(data["num_steps"]))
        cases.append((run, replay_trajectory(data, run, tx)))
    return cases


def replay_celo2(path) -> list[tuple[str, float]]:
    """Celo2-base; orthogonalized; with AdamW for vectors; with a schedule too; the variant of meta-training."""
    data = np.load(path)
    network = haiku.network(read(data, "theta/"), num_outputs=1)
    rate, decay = float(data["lr"]), float(data["weight_decay"])
    runs = {
        "base": {"orthogonalize": False, "vectors": "learned", "weight_decay": decay},
        "orth_all": {"vectors": "learned"},
        "full": {"weight_decay": decay},
        "full_sched": {"weight_decay": decay},
    }
    if path.stem.endswith("main"):
        runs["meta_harness"] = {"vectors": "adam_uncorrected"}
    cases = []
    for run, settings in runs.items():
        tx = families.build("celo2", learning_rate=rate, **settings).bind({"network": network})
        if run == "full_sched":
            tx = compose(tx, schedule=lambda step: jnp.asarray(data["schedule_values"])[step] / rate)
        cases.append((run, replay_trajectory(data, run, tx)))
    return cases


def replay_elo(path) -> list[tuple[str, float]]:
    """ELO and ELO-Celo2 with clipping and weight decay; muLO with PyLO's weight decay after the step."""
    data = np.load(path)
    rate, decay, clip = (float(data[name]) for name in ("lr", "weight_decay", "clip_norm"))
    mulo_decays = {ours: jnp.asarray(data[f"theta_mulo_decays/{theirs}"]) for theirs, ours in small_fc.DECAYS.items()}
    initial_decays = jax.tree.map(jnp.zeros_like, mulo_decays)

    def bind(step_multiplier: float, decays: dict) -> optax.GradientTransformation:
        optimizer = families.build("small_fc", hidden=32, step_multiplier=step_multiplier)
        return optimizer.bind({"network": read(data, "theta_elo/"), **decays})

    celo2 = families.build(
        "celo2", learning_rate=rate, weight_decay=decay, vector_multiplier=float(data["adam_lr_mult"])
    )
    theta = {"network": haiku.network(read(data, "theta_elo_celo2/", into=haiku.NETWORK), num_outputs=1)}
    multipliers = read(data, "pylo_mulo_wd/lr/")
    runs = {
        "elo": compose(bind(rate, initial_decays), clip=clip, weight_decay=rate * decay),
        "elo_celo2": compose(celo2.bind(theta), clip=clip),
        "pylo_mulo_wd": compose(bind(0.01, mulo_decays), multipliers=multipliers, weight_decay=decay, pylo_decay=True),
    }
    return [(run, replay_trajectory(data, run, tx)) for run, tx in runs.items()]
