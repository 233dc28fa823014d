"""The rule: its loss of a rollout, and what it keeps from one update to the next."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metaopt.core import Agent, Learned, Params, Rollout, Theta, UpdateRule
from metaopt.errors import UserError
from metaopt.nn import lstm
from metaopt.nn.lstm import LSTMState
from metaopt.objectives.disco import network, values
from metaopt.objectives.disco.network import LIFETIME_HIDDEN, NUM_PREDICTIONS, Seen, take
from metaopt.objectives.disco.values import NUM_BINS, MovingMean

Outputs = dict[str, jax.Array]  # by head; T + 1 rows


@dataclasses.dataclass(frozen=True)
class Config:
    discount: float = 0.997
    trace: float = 0.95  # how much a return is corrected by what followed, the lambda of Retrace
    target_decay: float = 0.9  # of the moving mean of parameters that is the target network
    value_cost: float = 0.2  # weight of the loss of q

    def __post_init__(self):
        for name in ("discount", "trace", "target_decay"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        if self.value_cost < 0.0:
            raise ValueError(f"value_cost must be 0 or more, got {self.value_cost}")


class State(NamedTuple):
    advantage: MovingMean
    td: MovingMean  # of temporal differences of q; kept as the reference does, which reads it nowhere
    lifetime: LSTMState  # (LIFETIME_HIDDEN,), what is remembered of the agent's life
    target: Params  # moving mean of the agent's parameters


class Losses(NamedTuple):
    """Losses of each step, (T, B)."""

    rule: jax.Array  # of the policy, y, z and aux
    value: jax.Array  # of q


def build(config: Config = Config()) -> Learned:
    """Returns the rule Disco103, for agents with discrete actions.

    Beside a policy pi and a categorical action value q, an agent predicts y, and z of each action, whose meaning
    was meta-learned: a network reads a rollout and says what all of them should have been. With a the action taken
    and G the return corrected towards pi by the target network, the loss of a step is

        KL(pi*||pi) + KL(y*||y) + KL(z*||z_a) + KL(pi_{t+1}||aux_a) + value_cost CE(two_hot(G), q_a)

    where the fourth term, without a gradient of pi, is left out where an episode ended. The loss is the mean over
    steps. What should have been is a constant for the agent, and a function of theta for meta-gradients.

    The agent's optimizer is, in the reference, Adam, whose update is clipped elementwise to +-1 before it is
    multiplied by the rate. Where a step was cut by a limit of time, what came after it is not known: its return
    counts as the target network's q_a, and its losses are left out.

    Memory: the target network, and about 90 kB for each environment and step with three actions.
    """

    def heads(num_actions: int) -> dict[str, tuple[int, ...]]:
        return {
            "logits": (num_actions,),
            "y": (NUM_PREDICTIONS,),
            "z": (num_actions, NUM_PREDICTIONS),
            "q": (num_actions, NUM_BINS),
            "aux": (num_actions, num_actions),
        }

    def init(params: Params) -> State:
        # The rule's state and the agent's parameters share no buffers, so both can be donated.
        target = jax.tree.map(lambda p: jnp.array(p, copy=True), params)
        moments = values.init_moving_mean
        return State(moments(), moments(), lstm.zeros((), LIFETIME_HIDDEN), target)

    def bind(theta: Theta, num_steps: jax.Array | int | None = None) -> UpdateRule:
        del num_steps  # the rule tells by itself how far an agent is

        def loss(apply: Agent, params: Params, rollout: Rollout, state: State) -> tuple[jax.Array, State]:
            rollout = _checked(rollout)
            outputs, targets = (_outputs(apply, p, rollout, heads) for p in (params, state.target))
            losses, state = step_losses(config, theta, outputs, targets, rollout, state)
            counts = ~_is_cut(rollout)
            of_steps = jnp.where(counts, losses.rule + config.value_cost * losses.value, 0.0)
            decay = config.target_decay
            target = jax.tree.map(lambda t, p: (decay * t + (1.0 - decay) * p).astype(t.dtype), state.target, params)
            return jnp.sum(of_steps) / jnp.maximum(jnp.sum(counts), 1), state._replace(target=target)

        return UpdateRule(heads, init, loss)

    return Learned(network.init, bind, kind="update_rule")


def step_losses(
    config: Config, theta: Theta, outputs: Outputs, targets: Outputs, rollout: Rollout, state: State
) -> tuple[Losses, State]:
    """The losses of each step, and the state but for its target network.

    Args:
      config: the settings.
      theta: weights as ``network.init`` returns them.
      outputs: of the agent.
      targets: of the target network.
      rollout: what happened.
      state: the state before.
    """
    # Constants: otherwise an agent would change what it is told in place of what it predicts.
    outputs_now, targets = jax.lax.stop_gradient((outputs, targets))
    seen, td, state = observe(config, outputs_now, targets, rollout, state)
    predicted, lifetime = network.apply(theta, seen, state.lifetime)

    now = {name: x[:-1] for name, x in outputs.items()}
    z, q, aux = (take(now[name], rollout.actions) for name in ("z", "q", "aux"))
    next_policy = outputs_now["logits"][1:]
    rule = _divergence(predicted.policy, now["logits"]) + _divergence(predicted.y, now["y"])
    rule += _divergence(predicted.z, z) + seen.continues * _divergence(next_policy, aux)
    returns = values.expectation(jax.lax.stop_gradient(q)) + td
    value = -jnp.sum(values.two_hot(returns) * jax.nn.log_softmax(q), axis=-1)
    return Losses(rule, value), state._replace(lifetime=lifetime)


def observe(
    config: Config, outputs: Outputs, targets: Outputs, rollout: Rollout, state: State
) -> tuple[Seen, jax.Array, State]:
    """What the networks read, the temporal differences of q, (T, B), and the state with new moving means.

    The arguments are those of ``step_losses``.
    """
    policy, target_q = jax.nn.softmax(outputs["logits"]), values.expectation(targets["q"])
    log_ratios = jax.nn.log_softmax(outputs["logits"][:-1]) - jax.nn.log_softmax(rollout.logits)
    traces = config.trace * jnp.exp(jnp.minimum(take(log_ratios, rollout.actions), 0.0))
    continues = (~rollout.done).astype(jnp.float32)
    q = values.expectation(outputs["q"])
    target_values = jnp.sum(policy * target_q, axis=-1)
    taken = take(target_q[:-1], rollout.actions)
    returns = values.corrected_returns(
        rollout.rewards, config.discount * continues, traces, target_values, taken, _is_cut(rollout)
    )
    advantages, q_advantages = returns - target_values[:-1], target_q - target_values[..., None]
    td = returns - take(q[:-1], rollout.actions)
    state = state._replace(
        advantage=values.update_moving_mean(state.advantage, advantages), td=values.update_moving_mean(state.td, td)
    )
    seen = Seen(
        actions=rollout.actions,
        rewards=rollout.rewards,
        continues=continues,
        behavior=jax.nn.softmax(rollout.logits),
        policy=policy,
        target_policy=jax.nn.softmax(targets["logits"]),
        y=jax.nn.softmax(outputs["y"]),
        target_y=jax.nn.softmax(targets["y"]),
        z=jax.nn.softmax(outputs["z"]),
        target_z=jax.nn.softmax(targets["z"]),
        values=jnp.sum(policy * q, axis=-1),
        advantages=advantages,
        normalized_advantages=values.normalize(state.advantage, advantages),
        target_q=target_q,
        q_advantages=q_advantages,
        normalized_q_advantages=values.normalize(state.advantage, q_advantages),
    )
    return seen, td, state


def _is_cut(rollout: Rollout) -> jax.Array:
    """Steps after which an episode was cut by a limit of time, so that the next observation is of another one."""
    return rollout.done & ~rollout.terminated


def _divergence(logits: jax.Array, other: jax.Array) -> jax.Array:
    """``KL(softmax(logits) || softmax(other))`` on the last axis."""
    log_p = jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(log_p) * (log_p - jax.nn.log_softmax(other)), axis=-1)


def _outputs(apply: Agent, params: Params, rollout: Rollout, heads: Any) -> Outputs:
    """The heads of an agent in float32.

    Raises:
      UserError: for a head that is missing or of another shape.
    """
    outputs, num_actions = apply(params, rollout.observations), rollout.logits.shape[-1]
    rows, batch = rollout.actions.shape
    for name, shape in heads(num_actions).items():
        expected, found = (rows + 1, batch, *shape), jnp.shape(outputs[name]) if name in outputs else None
        if found != expected:
            has = f"has shape {list(found)}" if found is not None else "is missing"
            raise UserError(f"disco: the agent's output {name!r} {has}; it should have shape {list(expected)}")
    return {name: outputs[name].astype(jnp.float32) for name in heads(num_actions)}


def _checked(rollout: Rollout) -> Rollout:
    """The rollout with rewards and logits in float32.

    Raises:
      UserError: unless actions are numbers of actions, one for each step.
    """
    dtype, shape = jnp.result_type(rollout.actions), jnp.shape(rollout.actions)
    if not jnp.issubdtype(dtype, jnp.integer) or len(shape) != 2:
        raise UserError(
            "disco is for discrete actions: an integer for each step of each environment, (T, B); the rollout has "
            f"{dtype}{list(shape)}"
        )
    rewards, logits = (x.astype(jnp.float32) for x in (rollout.rewards, rollout.logits))
    return rollout._replace(rewards=rewards, logits=logits)
