"""Kind "update_rule": which reward belongs to which action, learned where rewards come a step late.

Seconds on one core. The rule starts by crediting an action with the reward of the same step, which
has nothing to do with it here; meta-training moves the weight to the reward of the next step, and
the meta-loss, the negative of the expected reward, falls.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from meta_train import Episodes, Estimation, OuterLoop, Recipe
from metaopt.core import Key, Learned, TaskParams, Theta

NUM_LAGS = 3  # rewards that an action may be credited with: of the same step and of the next two


class Rollout(NamedTuple):
    log_probs: jax.Array  # (num_steps,) of the actions taken; differentiable
    baseline: jax.Array  # () what the agent keeps for the rule; differentiable
    rewards: jax.Array  # (num_steps,)


Rule = Callable[[Rollout], jax.Array]


def init(key: Key) -> Theta:
    """All credit to the reward of the same step. Theta is one array, as it may be any tree."""
    del key
    return jnp.eye(NUM_LAGS)[0]


def bind(theta: Theta, num_steps: jax.Array | int | None = None) -> Rule:
    """loss = mean_t(-log pi(a_t) (G_t - b) + 1/2 (G_t - b)^2),   G_t = sum_k theta_k r_{t + k}.

    The first term moves the policy and holds b constant; the second moves the baseline b.
    """
    del num_steps

    def rule(rollout: Rollout) -> jax.Array:
        log_probs, baseline, rewards = rollout
        num = len(rewards) - NUM_LAGS + 1
        credit = theta @ jnp.stack([rewards[k : k + num] for k in range(NUM_LAGS)])
        advantage = credit - jax.lax.stop_gradient(baseline)
        return jnp.mean(-log_probs[:num] * advantage + 0.5 * (credit - baseline) ** 2)

    return rule


class Agent(NamedTuple):
    logits: jax.Array  # (num_arms,)
    baseline: jax.Array  # ()


@dataclasses.dataclass(frozen=True)
class DelayedBandit:
    """Arms whose rewards come a step after they are pulled; a step is a rollout and a gradient step of the agent."""

    num_arms: int = 3
    rollout_length: int = 32
    learning_rate: float = 1.0
    name: str = "delayed-bandit"
    solved_by: tuple[str, ...] = ("update_rule",)

    def traits(self) -> dict:
        return {"family": "bandit", "datasets": [], "architecture": {"arms": [self.num_arms, self.num_arms]}}

    def sample(self, key: Key) -> TaskParams:
        """(num_arms,) rewards in random order."""
        return jax.random.permutation(key, jnp.linspace(-1.0, 1.0, self.num_arms))

    def init(self, task_params: TaskParams, key: Key) -> Agent:
        del task_params, key
        return Agent(jnp.zeros(self.num_arms), jnp.zeros(()))

    def start(self, algorithm: Rule, task_params: TaskParams, x: Agent) -> Agent:
        del algorithm, task_params
        return x

    def step(self, algorithm: Rule, task_params: TaskParams, state: Agent, key: Key) -> tuple[Agent, jax.Array]:
        actions = jax.random.categorical(key, state.logits, shape=(self.rollout_length,))
        # Not a concatenation: jaxlib 0.10.2 fails to compile one here on CPUs.
        rewards = jnp.roll(task_params[actions], 1).at[0].set(0.0)

        def loss(agent: Agent) -> jax.Array:
            return algorithm(Rollout(jax.nn.log_softmax(agent.logits)[actions], agent.baseline, rewards))

        agent = jax.tree.map(lambda x, g: x - self.learning_rate * g, state, jax.grad(loss)(state))
        return agent, -jnp.mean(rewards)

    def solution(self, state: Agent) -> Agent:
        return state

    def evaluate(self, task_params: TaskParams, x: Agent, split: str, key: Key | None = None) -> dict:
        del split, key  # the expected reward is known exactly
        expected = jnp.sum(jax.nn.softmax(x.logits) * task_params)
        return {"loss": -expected, "return": expected}


def suite() -> tuple[DelayedBandit, ...]:
    return (DelayedBandit(),)


family = Learned(init, bind, kind="update_rule")
recipe = Recipe(
    family=family,
    tasks=suite,
    episodes=Episodes(shortest=10, longest=20, objective="raw"),
    estimator=Estimation(name="es_single", num_samples=32, window=10, sigma=0.3),
    outer=OuterLoop(outer_steps=40, learning_rate=0.2, warmup=5),
)
