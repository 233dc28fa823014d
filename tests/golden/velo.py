"""Replay of VeLO (HyperV2 of google/learned_optimization), with and without its two defects."""

import jax.numpy as jnp
import numpy as np

from metaopt import optimizers
from tests.golden.per_parameter import SCENARIOS, replay_trajectory


def replay(path) -> list[tuple[str, float]]:
    """Every variant of a file in every scenario."""
    data = np.load(path)
    (variant,) = {name.split("/")[0] for name in data.files} - {"in"}
    bugged = variant == "bugged"
    theta = read_theta(lambda name: data[f"{variant}/theta/{name.replace('.', '|')}"])
    num_bank, hidden = theta["bank"]["b0"].shape[0], theta["lstm"]["b"].shape[0] // 4
    optimizer = optimizers.build(
        "velo", hidden=hidden, bank=num_bank, bugged_loss_features=bugged, bugged_lstm_state=bugged
    )
    return [(f"{variant}/{s}", replay_trajectory(data, variant, s, optimizer, theta)) for s in SCENARIOS]


def read_theta(read) -> dict:
    """Our theta from the reference's names, ``read(dotted path)``."""
    dense = lambda name: {kind: jnp.asarray(read(f"rnn_params.{name}.{kind}")) for kind in "wb"}
    return {
        "bank": read_network(lambda name: read(f"ff_mod_stack.~.{name}")),
        "pooled": dense("linear_1"),
        "direct": dense("linear_2"),
        "lstm": dense("rnn/linear"),
        "initial": {name: jnp.asarray(read(f"lstm_init_state.{name}")) for name in ("hidden", "cell")},
        "controls": dense("rnn_to_controls"),
        "step_size": dense("step_size"),
    }


def read_network(read, num_out: int = 2) -> dict:
    """One matrix for all channels; outputs that nothing reads are dropped."""
    network = {f"{kind}{i}": jnp.asarray(read(f"{kind}{i}")) for kind in "wb" for i in range(3) if f"{kind}{i}" != "w0"}
    network["w0"] = jnp.concatenate([jnp.asarray(read(f"w0__{i}")) for i in range(14)], axis=-2)
    return network | {name: network[name][..., :num_out] for name in ("w2", "b2")}
