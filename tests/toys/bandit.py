"""Kind "drift": a learned penalty on moving a policy, for a bandit trained with PPO-like updates.

Seconds on one core. The penalty starts so strong that the policy hardly moves; meta-training
weakens it, and the meta-loss, the negative of the expected reward, falls.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from meta_train import Episodes, Estimation, OuterLoop, Recipe
from metaopt.core import Key, Learned, TaskParams, Theta

Drift = Callable[..., jax.Array]


class LearnedDrift:
    """d(l, A; u) = exp(c u) (exp(a) + exp(b) |A|) l (exp(l) - 1), a family as a class with ``Config`` and ``build``.

    Here l is the log ratio of the new policy to the old one, A the advantage and u the progress of
    training in [0, 1]. The drift is never negative; at l = 0 it is zero, and so is its gradient.
    """

    @dataclasses.dataclass(frozen=True)
    class Config:
        strength: float = 2.0  # a and b before meta-training; 2 is too strong to learn much

    @staticmethod
    def build(config: Config) -> Learned:
        def init(key: Key) -> Theta:
            del key
            strength = jnp.float32(config.strength)
            return {"constant": strength, "advantage": strength, "progress": jnp.zeros(())}

        def bind(theta: Theta, num_steps: jax.Array | int | None = None) -> Drift:
            del num_steps

            def drift(log_ratio: jax.Array, advantage: jax.Array, progress: jax.Array | None = None) -> jax.Array:
                strength = jnp.exp(theta["constant"]) + jnp.exp(theta["advantage"]) * jnp.abs(advantage)
                if progress is not None:
                    strength *= jnp.exp(theta["progress"] * progress)
                return strength * log_ratio * jnp.expm1(log_ratio)

            return drift

        return Learned(init, bind, kind="drift")


class Training(NamedTuple):
    logits: jax.Array  # (num_arms,), of the policy
    num_updates: jax.Array  # () int32, updates so far


@dataclasses.dataclass(frozen=True)
class Bandit:
    """Arms with normal rewards; a step is a batch of actions and some epochs of gradient descent on it.

        loss = mean(-r A + drift(log r, A)),   r = pi(a) / pi_old(a),   A = reward - mean reward

    A drift also gets the progress of training, the fraction of ``planned_updates`` that are done.
    """

    num_arms: int = 4
    batch_size: int = 32
    num_epochs: int = 8
    learning_rate: float = 0.2
    planned_updates: int = 10  # of a whole training
    name: str = "bandit"
    solved_by: tuple[str, ...] = ("drift",)

    def traits(self) -> dict:
        return {"family": "bandit", "datasets": [], "architecture": {"arms": [self.num_arms, self.num_arms]}}

    def sample(self, key: Key) -> TaskParams:
        """(num_arms,) mean rewards in random order."""
        return jax.random.permutation(key, jnp.linspace(-1.0, 1.0, self.num_arms))

    def init(self, task_params: TaskParams, key: Key) -> jax.Array:
        del task_params, key
        return jnp.zeros(self.num_arms)

    def start(self, algorithm: Drift, task_params: TaskParams, x: jax.Array) -> Training:
        del algorithm, task_params
        return Training(x, jnp.zeros((), jnp.int32))

    def step(self, algorithm: Drift, task_params: TaskParams, state: Training, key: Key) -> tuple[Training, jax.Array]:
        old_logits, num_updates = state
        k_actions, k_rewards = jax.random.split(key)
        actions = jax.random.categorical(k_actions, old_logits, shape=(self.batch_size,))
        rewards = task_params[actions] + jax.random.normal(k_rewards, actions.shape)
        advantage = rewards - jnp.mean(rewards)
        old_log_prob = jax.nn.log_softmax(old_logits)[actions]
        progress = jnp.minimum(num_updates / self.planned_updates, 1.0)

        def loss(logits: jax.Array) -> jax.Array:
            log_ratio = jax.nn.log_softmax(logits)[actions] - old_log_prob
            return jnp.mean(-jnp.exp(log_ratio) * advantage + algorithm(log_ratio, advantage, progress=progress))

        def epoch(logits: jax.Array, _: None) -> tuple[jax.Array, None]:
            return logits - self.learning_rate * jax.grad(loss)(logits), None

        logits, _ = jax.lax.scan(epoch, old_logits, length=self.num_epochs)
        return Training(logits, num_updates + 1), -jnp.mean(rewards)

    def solution(self, state: Training) -> jax.Array:
        return state.logits

    def evaluate(self, task_params: TaskParams, x: jax.Array, split: str, key: Key | None = None) -> dict:
        del split, key  # the expected reward is known exactly
        expected = jnp.sum(jax.nn.softmax(x) * task_params)
        return {"loss": -expected, "return": expected}


def suite() -> tuple[Bandit, ...]:
    return (Bandit(),)


family = LearnedDrift
recipe = Recipe(
    family=family,
    tasks=suite,
    episodes=Episodes(shortest=10, longest=10, objective="raw"),  # a loss may be negative
    estimator=Estimation(name="es_single", num_samples=32, window=10, sigma=0.3),
    outer=OuterLoop(outer_steps=40, learning_rate=0.3, warmup=5),
)
