"""The lines that README gives for a drift, in a training loop that is not ours."""

import re
from pathlib import Path

import gymnax
import jax
import jax.numpy as jnp
import optax
import pytest

import metaopt

README = Path(metaopt.__file__).parent / "README.md"


def lines_of_readme(family: str) -> dict:
    """What the code of the section defines, with another family in the place of ``dpo``."""
    section = README.read_text().split("### A drift in your PPO")[1]
    code = re.search(r"```python\n(.*?)```", section, re.S)[1]
    names = {"jax": jax, "jnp": jnp, "metaopt": metaopt}
    exec(code.replace('build("dpo")', f'build("{family}")'), names)
    return names


@pytest.mark.parametrize("family", ["ppo", "dpo", "lpo"])
def test_catch_is_learned_with_the_lines_of_readme(family):
    """REINFORCE with a baseline and four epochs a rollout: an episode of nine steps is a rollout."""
    names = lines_of_readme(family)
    env, env_params = gymnax.make("Catch-bsuite")
    num = 64

    def logits(params, observations):
        return jnp.tanh(observations @ params["w0"]) @ params["w1"]

    def log_prob(params, observations, actions):
        return jnp.take_along_axis(jax.nn.log_softmax(logits(params, observations)), actions[..., None], -1)[..., 0]

    def episode(params, key):
        def step(carry, key):
            observation, state = carry
            k_act, k_env = jax.random.split(key)
            action = jax.random.categorical(k_act, logits(params, observation.ravel()))
            after, state, reward, *_ = env.step(k_env, state, action, env_params)
            return (after, state), (observation.ravel(), action, reward)

        k_reset, k_steps = jax.random.split(key)
        return jax.lax.scan(step, env.reset(k_reset, env_params), jax.random.split(k_steps, 9))[1]

    tx = optax.adam(0.01)

    @jax.jit
    def update(carry, key):
        params, opt_state = carry
        observations, actions, rewards = jax.vmap(episode, (None, 0))(params, jax.random.split(key, num))
        returns = jnp.sum(rewards, axis=1, keepdims=True)
        advantages = jnp.broadcast_to((returns - returns.mean()) / (returns.std() + 1e-8), rewards.shape)
        batch = names["Batch"](log_prob(params, observations, actions), advantages)

        def epoch(carry, _):
            params, opt_state = carry
            loss = lambda params: names["actor_loss"](log_prob(params, observations, actions), batch)
            updates, opt_state = tx.update(jax.grad(loss)(params), opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        return jax.lax.scan(epoch, (params, opt_state), length=4)[0], jnp.mean(returns)

    k_first, k_second = jax.random.split(jax.random.key(0))
    params = {"w0": 0.2 * jax.random.normal(k_first, (50, 32)), "w1": 0.1 * jax.random.normal(k_second, (32, 3))}
    carry, returns = (params, tx.init(params)), []
    for key in jax.random.split(jax.random.key(1), 60):
        carry, mean_return = update(carry, key)
        returns.append(float(mean_return))
    assert returns[0] < 0.0 and sum(returns[-5:]) / 5 > 0.6, returns
