"""The environments of gymnax, by name, with what an agent has to know of them.

Since gymnax 1.0 a step says apart whether an episode ended for good (terminated) or by a limit of
time (truncated), and the last observation of an episode is beside the first one of the next.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metaopt.core import Key, PyTree
from metaopt.errors import UserError, unknown


class Transition(NamedTuple):
    """What a step of an environment leads to; an episode that ended has begun anew."""

    state: PyTree
    observation: jax.Array  # (num_features,), where done of the next episode
    last_observation: jax.Array  # (num_features,), where done of the episode that ended
    reward: jax.Array  # ()
    terminated: jax.Array  # () bool: ended for good
    done: jax.Array  # () bool: ended, for good or by the limit of time


@dataclasses.dataclass(frozen=True)
class Environment:
    """One environment; its methods are pure and vmappable.

    Attributes:
      name: the name that gymnax has for it.
      num_features: elements of an observation, which is flattened.
      num_actions: actions to choose from; where they are continuous, coordinates of an action.
      is_discrete: whether actions are chosen from, or else vectors.
      time_limit: most steps of an episode.
      params: the environment's parameters: a dataclass of numbers, some of which may be drawn for each task.
    """

    name: str
    num_features: int
    num_actions: int
    is_discrete: bool
    time_limit: int
    params: Any

    def reset(self, key: Key, params: Any) -> tuple[PyTree, jax.Array]:
        """The state of a new episode and its first observation (num_features,)."""
        observation, state = _gymnax(self.name)[0].reset(key, params)
        return state, _flat(observation)

    def step(self, key: Key, state: PyTree, action: jax.Array, params: Any) -> Transition:
        """One step with an action, () int32 or (num_actions,)."""
        observation, state, reward, terminated, truncated, info = _gymnax(self.name)[0].step(key, state, action, params)
        last = _flat(info["final_observation"])
        return Transition(state, _flat(observation), last, jnp.float32(reward), terminated, terminated | truncated)


@functools.cache
def build(name: str) -> Environment:
    """The environment of a name.

    Raises:
      UserError: for a name that gymnax does not have, or actions of a kind that agents do not have.
    """
    env, params = _gymnax(name)
    observations, actions = env.observation_space(params), env.action_space(params)
    shape = getattr(observations, "shape", None)
    is_discrete = hasattr(actions, "n")
    if shape is None or not (is_discrete or len(getattr(actions, "shape", ())) == 1):
        raise UserError(f"environment {name}: agents need one array to observe and one number or vector to act by")
    return Environment(
        name,
        math.prod(shape),
        int(actions.n) if is_discrete else actions.shape[0],
        is_discrete,
        int(params.max_steps_in_episode),
        params,
    )


@functools.cache
def _gymnax(name: str) -> tuple[Any, Any]:
    """gymnax's environment and its default parameters; one of each, because its methods are compiled for each."""
    import gymnax  # starts the backend: not before a distributed run has begun

    if name not in gymnax.registered_envs:
        raise unknown("environment of gymnax", name, gymnax.registered_envs)
    return gymnax.make(name)


def _flat(observation: jax.Array) -> jax.Array:
    return jnp.ravel(observation).astype(jnp.float32)
