"""Replay of Disco103, the released rule of google-deepmind/disco_rl with its released weights."""

import jax
import jax.numpy as jnp
import numpy as np

from metaopt import importers
from metaopt.core import Rollout
from metaopt.objectives.disco import Config, build, network, rule, values
from tests.released import RELEASED

WEIGHTS = RELEASED / "disco" / "disco_103.npz"
HEADS = {"logits": "logits", "y": "y", "z": "z", "q": "q", "aux": "aux_pi"}
LSTM = "rnn['lstm']['meta_rnn_state']"
TOLERANCE = 2e-5  # relative to the largest entry of each array
# How the returns are rounded moves the two-hot targets by 1e-4 of a bin: computed in float64, the loss is 2.2e-5
# from the stored one, and its gradient 1.8e-4.
TOLERANCES = {"loss_value": 4e-5, "grad_norm/q": 3e-4}


def replay(path) -> list[tuple[str, float]]:
    """Two calls, the second with the moving means and the lifetime state of the first.

    Raises:
      FileNotFoundError: without the weights, which are not part of this project.
    """
    if not WEIGHTS.is_file():
        raise FileNotFoundError(f"no released weights {WEIGHTS}; see METAOPT_RELEASED")
    theta, config = importers.read(WEIGHTS).theta, Config()
    agent = lambda params, observations: params  # that outputs what is stored

    @jax.jit
    def call(outputs, rollout, state):
        def of_steps(outputs):
            losses, _ = rule.step_losses(config, theta, outputs, state.target, rollout, state)
            return jnp.sum(losses.rule + config.value_cost * losses.value), losses

        grads, losses = jax.grad(of_steps, has_aux=True)(outputs)
        seen, td, _ = rule.observe(config, outputs, state.target, rollout, state)
        loss, new = build(config).bind(theta).loss(agent, outputs, rollout, state)
        size = lambda x: jnp.linalg.norm(x, axis=-1)
        found = {
            **network.apply(theta, seen, state.lifetime)[0]._asdict(),
            "adv": seen.advantages,
            "normalized_adv": seen.normalized_advantages,
            "qv_adv": seen.q_advantages,
            "normalized_qv_adv": seen.normalized_q_advantages,
            "q_value": values.expectation(outputs["q"]),
            "q_td": td,
            "loss_rule": losses.rule,
            "loss_value": config.value_cost * losses.value,
            "loss": loss,
            **{f"grad/{HEADS[name]}": grads[name] for name in ("logits", "y", "aux")},
            "grad_sum/z": jnp.sum(grads["z"], axis=-1),
            **{f"grad_norm/{name}": size(grads[name]) for name in ("z", "q")},
            "adv_ema_state": jnp.stack(new.advantage),
            "td_ema_state": jnp.stack(new.td),
            f"{LSTM}.hidden": new.lifetime.hidden,
            f"{LSTM}.cell": new.lifetime.cell,
        }
        return {"pi" if name == "policy" else name: x for name, x in found.items()}, new

    cases, state = [], build(config).bind(theta).init({})
    with np.load(path) as data:
        for i in range(2):
            heads = lambda who, i=i: {ours: data[f"{i}/in/{who}/{theirs}"] for ours, theirs in HEADS.items()}
            terminal = data[f"{i}/in/is_terminal"] > 0
            rollout = Rollout(
                observations=(),
                actions=data[f"{i}/in/actions"][:-1],  # no loss reads the last one
                rewards=data[f"{i}/in/rewards"],
                terminated=terminal,
                done=terminal,
                logits=data[f"{i}/in/behaviour/logits"][:-1],
            )
            found, state = call(heads("agent"), rollout, state._replace(target=heads("target")))
            expected = {name: data[f"{i}/out/{name}"] for name in found if name != "loss"}
            expected["loss"] = np.mean(expected["loss_rule"] + expected["loss_value"])
            # The sum of the gradient of a softmax is zero but for rounding.
            scale = expected | {"grad_sum/z": expected["grad_norm/z"]}
            for name, theirs in expected.items():
                error = np.max(np.abs(found[name] - theirs)) / np.max(np.abs(scale[name]))
                cases.append((f"call {i}, {name}", float(error / TOLERANCES.get(name, TOLERANCE))))
    return cases
