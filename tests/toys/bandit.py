"""Kind "drift": a learned penalty on how far a policy moves, for a bandit trained by policy gradients."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from meta_train import Episodes, Estimation, OuterLoop, Recipe
from metaopt.core import Key, Learned, Theta


class Family:
    """d(x, A) = (exp(a) + exp(b) |A|) (exp(x) - 1 - x), of the log ratio x and the advantage A.

    Zero, and of zero gradient, where the policy has not moved; never negative.
    """

    @dataclasses.dataclass(frozen=True)
    class Config:
        strength: float = 2.0  # far too strong to learn much

    @staticmethod
    def build(config: Config) -> Learned:
        def init(key: Key) -> Theta:
            del key
            return {"constant": jnp.float32(config.strength), "of_advantage": jnp.float32(config.strength)}

        def bind(theta: Theta, num_steps=None):
            del num_steps

            def drift(log_ratio: jax.Array, advantage: jax.Array, progress=None) -> jax.Array:
                del progress
                strength = jnp.exp(theta["constant"]) + jnp.exp(theta["of_advantage"]) * jnp.abs(advantage)
                return strength * (jnp.expm1(log_ratio) - log_ratio)

            return drift

        return Learned(init, bind, kind="drift")


family = Family


class Policy(NamedTuple):
    logits: jax.Array  # (arms,)


@dataclasses.dataclass(frozen=True)
class Bandit:
    """Arms with normal rewards; a step is a batch of pulls and some epochs of gradients on it."""

    arms: int = 4
    batch_size: int = 32
    epochs: int = 8
    rate: float = 0.2
    name: str = "bandit"
    solved_by: tuple[str, ...] = ("drift",)

    def traits(self):
        return {"family": "bandit", "datasets": [], "architecture": {"arms": [self.arms, self.arms]}}

    def sample(self, key):
        return jax.random.permutation(key, jnp.linspace(-1.0, 1.0, self.arms))

    def init(self, task_params, key):
        del task_params, key
        return Policy(jnp.zeros(self.arms))

    def start(self, algorithm, task_params, x):
        del algorithm, task_params
        return x

    def step(self, algorithm, task_params, state, key):
        k_actions, k_rewards = jax.random.split(key)
        actions = jax.random.categorical(k_actions, state.logits, shape=(self.batch_size,))
        rewards = task_params[actions] + jax.random.normal(k_rewards, actions.shape)
        advantage = rewards - jnp.mean(rewards)
        before = jax.nn.log_softmax(state.logits)[actions]

        def loss(logits):
            log_ratio = jax.nn.log_softmax(logits)[actions] - before
            return -jnp.mean(jnp.exp(log_ratio) * advantage - algorithm(log_ratio, advantage))

        logits = state.logits
        for _ in range(self.epochs):
            logits = logits - self.rate * jax.grad(loss)(logits)
        return Policy(logits), -jnp.mean(rewards)

    def solution(self, state):
        return state

    def evaluate(self, task_params, x, split, key=None):
        del split, key  # known exactly
        expected = jnp.sum(jax.nn.softmax(x.logits) * task_params)
        return {"loss": -expected, "return": expected}


def suite():
    return (Bandit(),)


recipe = Recipe(
    family=family,
    tasks=suite,
    episodes=Episodes(shortest=10, longest=10, objective="raw"),  # returns: a loss may be negative
    estimator=Estimation(name="es_single", num_samples=64, window=10, sigma=0.3),
    outer=OuterLoop(outer_steps=60, learning_rate=0.3, warmup=5),
)
