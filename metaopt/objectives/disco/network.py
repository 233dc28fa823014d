"""The network that says what an agent should have predicted, and the one that remembers the agent's life.

Source: Oh et al., Nature, 2025, doi:10.1038/s41586-025-09761-x; google-deepmind/disco_rl.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaopt.core import Key, Theta
from metaopt.nn import dense, lstm
from metaopt.nn.lstm import LSTMState

NUM_PREDICTIONS = 600  # size of y, and of z for each action
NUM_FEATURES, NUM_CHANNELS = 27, 9  # of a step, and of each of its actions
HIDDEN, LIFETIME_HIDDEN = 256, 128  # units of the two LSTMs
EMBEDDING, ACTION_EMBEDDING, SUMMARY = 16, 2, 16
NUM_LAYERS = 21  # of all networks


class Seen(NamedTuple):
    """What the networks read of T steps and the state after them; y and z are distributions too."""

    actions: jax.Array  # (T, B) int
    rewards: jax.Array  # (T, B)
    continues: jax.Array  # (T, B), 0 where the step ended an episode, else 1
    behavior: jax.Array  # (T, B, A)
    policy: jax.Array  # (T + 1, B, A)
    target_policy: jax.Array  # (T + 1, B, A)
    y: jax.Array  # (T + 1, B, NUM_PREDICTIONS)
    target_y: jax.Array  # (T + 1, B, NUM_PREDICTIONS)
    z: jax.Array  # (T + 1, B, A, NUM_PREDICTIONS)
    target_z: jax.Array  # (T + 1, B, A, NUM_PREDICTIONS)
    values: jax.Array  # (T + 1, B)
    advantages: jax.Array  # (T, B)
    normalized_advantages: jax.Array  # (T, B)
    target_q: jax.Array  # (T + 1, B, A)
    q_advantages: jax.Array  # (T + 1, B, A)
    normalized_q_advantages: jax.Array  # (T + 1, B, A)


class Predicted(NamedTuple):
    """Logits of what the agent should have predicted."""

    policy: jax.Array  # (T, B, A)
    y: jax.Array  # (T, B, NUM_PREDICTIONS)
    z: jax.Array  # (T, B, NUM_PREDICTIONS), of the action taken


def init(key: Key) -> Theta:
    """Initial weights, as ``dense.init`` and ``lstm.init`` have them."""
    keys = iter(jax.random.split(key, NUM_LAYERS))
    layer = lambda *sizes: dense.init(next(keys), *sizes)

    def inputs() -> Theta:
        embedding = lambda: {"hidden": layer(NUM_PREDICTIONS, EMBEDDING), "out": layer(EMBEDDING, 1)}
        actions = {"hidden": layer(2 * NUM_CHANNELS, EMBEDDING), "out": layer(2 * EMBEDDING, ACTION_EMBEDDING)}
        return {"y": embedding(), "z": embedding(), "actions": actions}

    return {
        "inputs": inputs(),
        "lstm": lstm.init(next(keys), NUM_FEATURES, HIDDEN),
        "gate": layer(LIFETIME_HIDDEN, HIDDEN),
        "y": layer(HIDDEN, NUM_PREDICTIONS),
        "z": layer(HIDDEN, NUM_PREDICTIONS),
        "policy": {"hidden": layer(2 * (HIDDEN + ACTION_EMBEDDING), EMBEDDING), "out": layer(EMBEDDING, 1)},
        "lifetime": {
            "inputs": inputs(),
            "state": layer(HIDDEN, 1),
            "summary": layer(NUM_FEATURES + 2, SUMMARY),
            "lstm": lstm.init(next(keys), SUMMARY, LIFETIME_HIDDEN),
        },
    }


def apply(theta: Theta, seen: Seen, lifetime: LSTMState) -> tuple[Predicted, LSTMState]:
    """What the agent should have predicted, and what is remembered.

    An LSTM reads the features f backwards, so that what a step is told depends on what came of it. With its
    output h, zero before the last step of an episode, and the hidden state l of the agent's life,

        x_t = h_t * gate(l),   y_t, z_t = dense(x_t),   policy_t = dense(block([x_t, e_t]))
        l' = LSTM(mean over t and batch of dense([f', dense(x_t), embedding'(softmax(y_t))]), l)

    where e are embeddings of the actions, and f' and embedding' have weights of their own.

    Args:
      theta: weights as ``init`` returns them.
      seen: what happened.
      lifetime: the state of the agent's life, (LIFETIME_HIDDEN,) each.
    """
    features, of_actions = _features(theta["inputs"], seen)

    def before(state: LSTMState, step: tuple[jax.Array, jax.Array]) -> tuple[LSTMState, jax.Array]:
        x, continues = step
        state = lstm.step(theta["lstm"], x, jax.tree.map(lambda s: s * continues[:, None], state))
        return state, state.hidden

    start = lstm.zeros(features.shape[1:2], HIDDEN)
    _, hidden = jax.lax.scan(before, start, (features, seen.continues), reverse=True)
    x = hidden * dense.apply(theta["gate"], lifetime.hidden)
    shared = jnp.broadcast_to(x[..., None, :], (*of_actions.shape[:-1], HIDDEN))
    block = _across_actions(theta["policy"]["hidden"], jnp.concatenate([shared, of_actions], axis=-1))
    policy = dense.apply(theta["policy"]["out"], block)[..., 0]
    predicted = Predicted(policy, dense.apply(theta["y"], x), dense.apply(theta["z"], x))

    own = theta["lifetime"]
    embedded = _embed(own["inputs"]["y"], jax.nn.softmax(predicted.y))[..., None]
    read = [_features(own["inputs"], seen)[0], dense.apply(own["state"], x), embedded]
    summary = jnp.mean(dense.apply(own["summary"], jnp.concatenate(read, axis=-1)), axis=(0, 1))
    return predicted, lstm.step(own["lstm"], summary, lifetime)


def _features(weights: Theta, seen: Seen) -> tuple[jax.Array, jax.Array]:
    """Features of each step, (T, B, NUM_FEATURES), and embeddings of its actions, (T, B, A, ACTION_EMBEDDING)."""
    y, target_y = (_embed(weights["y"], x) for x in (seen.y, seen.target_y))
    z, target_z = (_embed(weights["z"], x) for x in (seen.z, seen.target_z))
    channels = [
        seen.policy[:-1],
        seen.behavior,
        seen.target_policy[:-1],
        z[:-1],
        target_z[:-1],
        _signed_log(seen.target_q[:-1]),
        _signed_log(seen.q_advantages[:-1]),
        seen.normalized_q_advantages[:-1],
        jax.nn.one_hot(seen.actions, seen.behavior.shape[-1], dtype=seen.behavior.dtype),
    ]
    hidden = _across_actions(weights["actions"]["hidden"], jnp.stack(channels, axis=-1))
    of_actions = _across_actions(weights["actions"]["out"], hidden)

    pair = lambda x: [x[:-1], x[1:]]
    taken = lambda x: take(x[: len(seen.actions)], seen.actions)
    of_z = [
        feature
        for x in (z, target_z)
        for feature in (taken(x), *pair(jnp.sum(seen.policy * x, axis=-1)), *pair(jnp.max(x, axis=-1)))
    ]
    features = [taken(seen.policy), taken(seen.behavior), _signed_log(seen.rewards), seen.continues]
    features += [*pair(_signed_log(seen.values)), _signed_log(seen.advantages), seen.normalized_advantages]
    features += [taken(seen.target_policy), *pair(y), *pair(target_y), *of_z]
    features += [*jnp.moveaxis(jnp.mean(of_actions, axis=-2), -1, 0), *jnp.moveaxis(taken(of_actions), -1, 0)]
    return jnp.stack(features, axis=-1), of_actions


def take(x: jax.Array, actions: jax.Array) -> jax.Array:
    """The entries of the actions taken: (T, B, A, ...) and (T, B) to (T, B, ...)."""
    indices = actions.reshape(*actions.shape, *[1] * (x.ndim - 2))
    return jnp.take_along_axis(x, indices, axis=2).squeeze(2)


def _embed(weights: Theta, x: jax.Array) -> jax.Array:
    """One number for each distribution; (..., NUM_PREDICTIONS) to (...)."""
    return dense.apply(weights["out"], jax.nn.relu(dense.apply(weights["hidden"], x)))[..., 0]


def _across_actions(weights: Theta, x: jax.Array) -> jax.Array:
    """``relu(dense([x, mean of x over actions]))`` of each action; (..., A, num_in) to (..., A, num_out)."""
    mean = jnp.broadcast_to(jnp.mean(x, axis=-2, keepdims=True), x.shape)
    return jax.nn.relu(dense.apply(weights, jnp.concatenate([x, mean], axis=-1)))


def _signed_log(x: jax.Array) -> jax.Array:
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))
