"""Kind "update_rule": which reward belongs to which action, learned where rewards come a step late."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from meta_train import Episodes, Estimation, OuterLoop, Recipe
from metaopt.core import Key, Learned, Theta

LAGS = 3  # steps after an action whose rewards the rule looks at


class Rollout(NamedTuple):
    log_probs: jax.Array  # (steps,) of the actions taken, differentiable
    rewards: jax.Array  # (steps,)


def bind(theta: Theta, num_steps=None):
    """loss = -mean_t log pi(a_t) sum_k w_k (r_{t + k} - mean r)."""
    del num_steps

    def rule(rollout: Rollout) -> jax.Array:
        centered = rollout.rewards - jnp.mean(rollout.rewards)
        num = len(centered) - LAGS
        lagged = jnp.stack([centered[k : num + k] for k in range(LAGS)])
        return -jnp.mean(rollout.log_probs[:num] * (theta @ lagged))

    return rule


# The rule begins by rewarding an action with what comes at once: nothing to do with it here. Theta is one array.
family = Learned(init=lambda key: jnp.array([1.0, 0.0, 0.0]), bind=bind, kind="update_rule")


@dataclasses.dataclass(frozen=True)
class LateBandit:
    """Arms whose rewards come a step after they are pulled; a step is a rollout and an update of the agent."""

    arms: int = 3
    steps: int = 32
    rate: float = 1.0
    name: str = "late-bandit"
    solved_by: tuple[str, ...] = ("update_rule",)

    def traits(self):
        return {"family": "bandit", "datasets": [], "architecture": {"arms": [self.arms, self.arms]}}

    def sample(self, key: Key):
        return jax.random.normal(key, (self.arms,))

    def init(self, task_params, key):
        del task_params, key
        return jnp.zeros(self.arms)

    def start(self, algorithm, task_params, x):
        del algorithm, task_params
        return x

    def step(self, algorithm, task_params, state, key):
        actions = jax.random.categorical(key, state, shape=(self.steps,))
        rewards = jnp.concatenate([jnp.zeros(1), task_params[actions[:-1]]])

        def loss(logits):
            return algorithm(Rollout(jax.nn.log_softmax(logits)[actions], rewards))

        return state - self.rate * jax.grad(loss)(state), -jnp.mean(rewards)

    def solution(self, state):
        return state

    def evaluate(self, task_params, x, split, key=None):
        del split, key
        expected = jnp.sum(jax.nn.softmax(x) * task_params)
        return {"loss": -expected, "return": expected}


def suite():
    return (LateBandit(),)


recipe = Recipe(
    family=family,
    tasks=suite,
    episodes=Episodes(shortest=10, longest=20, objective="raw"),
    estimator=Estimation(name="es_single", num_samples=32, window=10, sigma=0.3),
    outer=OuterLoop(outer_steps=60, learning_rate=0.2, warmup=5),
)
