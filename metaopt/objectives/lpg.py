"""LPG: a recurrent network reads a rollout backwards and says what an agent's policy and prediction should become.

Sources: Oh et al., "Discovering reinforcement learning algorithms", arXiv:2007.08794; in the form
of Jackson et al., "Discovering general reinforcement learning algorithms with adversarial
environment design" (GROOVE), arXiv:2310.02782; "TA-LPG", Jackson et al., "Discovering temporally-aware
reinforcement learning algorithms", arXiv:2402.05828; EmptyJackson/groove, models/lpg.py.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaopt.core import Agent, Key, Learned, Params, Rollout, Theta, UpdateRule
from metaopt.errors import UserError
from metaopt.nn import gru, mlp

EPS = 1e-8  # added to every probability whose logarithm is taken
NUM_INPUTS = 5  # reward, done, probability of the action, two embedded predictions
NUM_TIME_INPUTS = 2  # TA-LPG: n / N and log N


@dataclasses.dataclass(frozen=True)
class Config:
    hidden: int = 256  # units of the GRU
    width_embedding: int = 16  # hidden units of the network that embeds a prediction
    num_predictions: int = 8  # categories of the prediction y
    alpha_y: float = 0.5  # weight of the prediction's loss
    temporal: bool = False  # TA-LPG: also read n / N and log N, from num_steps

    def __post_init__(self):
        if min(self.hidden, self.width_embedding, self.num_predictions) < 1:
            raise ValueError(f"hidden, width_embedding and num_predictions must be at least 1, got {self}")
        if self.alpha_y < 0:
            raise ValueError(f"alpha_y must not be negative, got {self.alpha_y}")


class State(NamedTuple):
    num_updates: jax.Array  # () int32, updates of the agent so far


class Targets(NamedTuple):
    policy: jax.Array  # pi_hat (T, B); where it is positive, the action becomes less likely
    prediction: jax.Array  # y_hat (T, B, num_predictions), probabilities


def build(config: Config = Config()) -> Learned:
    """Returns LPG, or TA-LPG, an update rule.

    With pi_t the probability of the action taken and y_t the prediction, both of the agent as it stands,

        loss = mean(log(pi_t) pi_hat_t) + alpha_y mean(KL(y_t || y_hat_t)),   (pi_hat, y_hat) = targets(...)

    An agent has the heads "logits" (num_actions,) and "y" (num_predictions,), logits of the prediction.
    Inside ``targets`` pi and y count as constants, as in the reference: a meta-gradient through
    several updates lacks this path from one update to the next, evolution strategies do not.
    Everything is differentiable in theta. The probabilities are those of ``params``; of a
    rollout it reads all but ``terminated`` and ``logits``: a limit of time ends an episode like anything else.

    With ``temporal`` it needs ``num_steps``, the number N of updates of the agent, and also reads n / N and
    log N, n being the updates so far; beyond N it continues with n / N = 1. The reference passes n and N as
    they are; this is the form of the paper.

    Raises:
      ValueError: from ``bind``, with ``temporal`` and without ``num_steps``.
      UserError: from ``loss``, for a rollout or an agent whose shapes do not fit.
    """

    def init(key: Key) -> Theta:
        k_embedding, k_gru, k_policy, k_prediction = jax.random.split(key, 4)
        num_inputs = NUM_INPUTS + NUM_TIME_INPUTS * config.temporal
        return {
            "embedding": mlp.init(k_embedding, (config.num_predictions, config.width_embedding, 1)),
            "gru": gru.init(k_gru, num_inputs, config.hidden),
            "policy": mlp.init(k_policy, (config.hidden, 1)),
            "prediction": mlp.init(k_prediction, (config.hidden, config.num_predictions)),
        }

    def bind(theta: Theta, num_steps: jax.Array | int | None = None) -> UpdateRule:
        if config.temporal and num_steps is None:
            raise ValueError("TA-LPG looks at the fraction of training done: pass num_steps=, the number of updates")

        def time_inputs(state: State) -> tuple[jax.Array, ...]:
            if not config.temporal:
                return ()
            planned = jnp.asarray(num_steps, jnp.float32)
            return jnp.minimum(state.num_updates / planned, 1.0), jnp.log(planned)

        def heads(num_actions: int) -> dict[str, tuple[int, ...]]:
            return {"logits": (num_actions,), "y": (config.num_predictions,)}

        def init_state(params: Params) -> State:
            del params
            return State(jnp.zeros((), jnp.int32))

        def loss(apply: Agent, params: Params, rollout: Rollout, state: State) -> tuple[jax.Array, State]:
            check_rollout(rollout)
            outputs = apply(params, rollout.observations)
            check_outputs(outputs, rollout, heads(rollout.logits.shape[-1]))
            policy = jax.nn.softmax(outputs["logits"][:-1])
            pi = jnp.take_along_axis(policy, rollout.actions[..., None], axis=-1)[..., 0]
            y = jax.nn.softmax(outputs["y"])
            read = jax.lax.stop_gradient((pi, y[:-1], y[1:]))
            wanted = targets(theta, rollout.rewards, rollout.done, *read, time=time_inputs(state))
            return agent_loss(pi, y[:-1], wanted, config.alpha_y), State(state.num_updates + 1)

        return UpdateRule(heads, init_state, loss)

    return Learned(init, bind, kind="update_rule")


def targets(
    theta: Theta,
    rewards: jax.Array,
    done: jax.Array,
    pi: jax.Array,
    y: jax.Array,
    y_next: jax.Array,
    time: tuple[jax.Array, ...] = (),
) -> Targets:
    """What the policy and the prediction of an agent should become, read from the end of a rollout.

        h_t = GRU([r_t, d_t, pi_t + eps, phi(y_t), (1 - d_t) phi(y_{t+1}), time], (1 - d_t) h_{t+1}),   h_T = 0
        pi_hat_t = relu(h_t) w + b,   y_hat_t = softmax(relu(h_t) W + c)

    phi is a network with one hidden layer; eps = 1e-8. Meta-objectives penalize mean(pi_hat^2) and
    mean(|y_hat|^2), see ``regularizers``.

    Args:
      theta: meta-parameters.
      rewards: r (T, B).
      done: d (T, B) bool, or 0 and 1.
      pi: (T, B), probability of the action taken.
      y: (T, B, num_predictions), prediction, probabilities.
      y_next: likewise, of the observation after the step.
      time: TA-LPG: () n / N and () log N.

    Source: arXiv:2007.08794, section 3; arXiv:2402.05828, for ``time``.
    """
    goes_on = 1.0 - jnp.asarray(done, jnp.float32)
    after = goes_on * _embed(theta["embedding"], y_next)
    inputs = [rewards, 1.0 - goes_on, pi + EPS, _embed(theta["embedding"], y), after, *time]
    x = jnp.stack([jnp.broadcast_to(entry, rewards.shape) for entry in inputs], axis=-1)

    def step(hidden: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x, goes_on = inputs
        hidden = gru.step(theta["gru"], x, goes_on[:, None] * hidden)
        return hidden, hidden

    hidden_at_end = jnp.zeros((rewards.shape[1], len(theta["gru"]["bh"])))
    _, hidden = jax.lax.scan(step, hidden_at_end, (x, goes_on), reverse=True)
    policy, prediction = (_dense(theta[head], jax.nn.relu(hidden)) for head in ("policy", "prediction"))
    return Targets(policy[..., 0], jax.nn.softmax(prediction))


def agent_loss(pi: jax.Array, y: jax.Array, targets: Targets, alpha_y: float) -> jax.Array:
    """() loss of an agent, ``mean(log(pi) pi_hat) + alpha_y prediction_loss``; pi and y as ``targets`` takes them."""
    return jnp.mean(jnp.log(pi + EPS) * targets.policy) + alpha_y * prediction_loss(y, targets)


def prediction_loss(y: jax.Array, targets: Targets) -> jax.Array:
    """() mean over steps of KL(y || y_hat)."""
    log_ratio = jnp.log(y + EPS) - jnp.log(targets.prediction + EPS)
    return jnp.mean(jnp.sum(y * log_ratio, axis=-1))


def regularizers(targets: Targets) -> tuple[jax.Array, jax.Array]:
    """() mean(pi_hat^2) and () mean(|y_hat|^2); the reference's meta-loss weighs them 0.005 and 0.001."""
    return jnp.mean(targets.policy**2), jnp.mean(jnp.sum(targets.prediction**2, axis=-1))


def check_rollout(rollout: Rollout) -> None:
    """Raises UserError naming the field of a rollout whose shape does not go with the actions'."""
    shape = rollout.actions.shape
    if len(shape) != 2:
        raise UserError(f"rollout.actions must be (T, B), a row of agents for each step; got {shape}")
    for field in ("rewards", "terminated", "done"):
        found = getattr(rollout, field).shape
        if found != shape:
            raise UserError(f"rollout.{field} must be like rollout.actions, {shape}; got {found}")
    if rollout.logits.ndim != 3 or rollout.logits.shape[:2] != shape:
        raise UserError(f"rollout.logits must be {(*shape, 'num_actions')}; got {rollout.logits.shape}")
    leading = (shape[0] + 1, shape[1])
    for leaf in jax.tree.leaves(rollout.observations):
        if leaf.shape[:2] != leading:
            raise UserError(
                f"rollout.observations must begin with (T + 1, B), {leading}: one more than the actions, for the "
                f"observation after the last; got {leaf.shape}"
            )


def check_outputs(outputs: dict[str, jax.Array], rollout: Rollout, heads: dict[str, tuple[int, ...]]) -> None:
    """Raises UserError naming the head that an agent lacks or has in another shape."""
    num_steps, num_agents = rollout.actions.shape
    for head, shape in heads.items():
        found = outputs[head].shape if head in outputs else "nothing"
        if found != (num_steps + 1, num_agents, *shape):
            raise UserError(f"the agent must have a head {head!r}, {(num_steps + 1, num_agents, *shape)}; got {found}")


def _embed(weights: Theta, y: jax.Array) -> jax.Array:
    """phi, a number for each prediction: (T, B, num_predictions) -> (T, B)."""
    units = jax.nn.relu(_dense(weights, y))
    return (units @ weights["w1"] + weights["b1"])[..., 0]


def _dense(weights: Theta, x: jax.Array) -> jax.Array:
    return x @ weights["w0"] + weights["b0"]
