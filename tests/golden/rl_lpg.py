"""Replay of LPG and TA-LPG, of EmptyJackson/groove."""

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.objectives import lpg

TOLERANCE = 1e-5  # absolute


def theta_of(data, prefix: str) -> dict:
    """The reference's theta under our names."""
    read = lambda name: jnp.asarray(data[f"{prefix}.{name}"])
    side_by_side = lambda side, kind, gates: jnp.concatenate([read(f"gru.{side}{g}_{kind}") for g in gates], axis=-1)
    return {
        "embedding": {name: read(f"emb.{name}") for name in ("w0", "b0", "w1", "b1")},
        "gru": {
            "wi": side_by_side("i", "w", "rzn"),
            "bi": side_by_side("i", "b", "rzn"),
            "wh": side_by_side("h", "w", "rzn"),
            "bh": read("gru.hn_b"),
        },
        "policy": {"w0": read("pi_w"), "b0": read("pi_b")},
        "prediction": {"w0": read("y_w"), "b0": read("y_b")},
    }


def replay(path) -> list[tuple[str, float]]:
    """Targets, losses and an agent's gradients; its next observations are drawn independently of the others."""
    data = np.load(path)
    by_time = lambda name: jnp.swapaxes(jnp.asarray(data[name]), 0, 1)  # the file has rollouts first
    actions, alpha_y = by_time("action").astype(jnp.int32), float(data["alpha_y"])

    def loss(weights, theta, time):
        policy, y, y_next = (
            jax.nn.softmax(by_time(observations) @ weights[head])
            for observations, head in (("obs", "actor"), ("obs", "critic"), ("next_obs", "critic"))
        )
        pi = jnp.take_along_axis(policy, actions[..., None], axis=-1)[..., 0]
        read = jax.lax.stop_gradient((pi, y, y_next))
        targets = lpg.targets(theta, by_time("reward"), by_time("done"), *read, time)
        pi_l2, y_l2 = lpg.regularizers(targets)
        found = {"pi_hat": targets.policy.T, "y_hat": jnp.swapaxes(targets.prediction, 0, 1), "pi_l2": pi_l2}
        found |= {"y_l2": y_l2, "kl": lpg.prediction_loss(y, targets)}
        value = lpg.agent_loss(pi, y, targets, alpha_y)
        return value, found | {"loss": value}

    cases = []
    for prefix in ("lpg", "talpg"):
        time = tuple(jnp.asarray(data["talpg_extra"])) if prefix == "talpg" else ()
        weights = {"actor": jnp.asarray(data["actor_w"]), "critic": jnp.asarray(data["critic_w"])}
        grads, found = jax.jit(jax.grad(loss, has_aux=True))(weights, theta_of(data, prefix), time)
        found |= {f"grad_{net}_w": grad for net, grad in grads.items()}
        for name, value in found.items():
            expected = data[f"{prefix}_{name}"]
            cases.append((f"{prefix} {name}", float(np.max(np.abs(value - expected))) / TOLERANCE))
    return cases
