"""Agents trained by PPO: environments, what they are taken to have returned, and the update itself."""

import dataclasses
import functools

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import families
from metaopt.core import num_calls
from metaopt.errors import UserError
from tasks import agents, environments
from tasks.experience import Experience, Unfinished, assess, mean_return
from tasks.ppo import PPO

KEY = jax.random.key(0)
TINY = PPO(num_environments=2, rollout_steps=8, num_epochs=2, num_minibatches=2, width=4, depth=1, learning_rate=0.01)


def ppo_drift(log_ratio, advantage, progress=None):
    learned = families.build("ppo")
    return learned.bind(learned.init(KEY))(log_ratio, advantage, progress)


@functools.cache
def stepped():
    """A jitted step of TINY, and the state before it."""
    task_params = TINY.sample(KEY)
    state = TINY.start(ppo_drift, task_params, TINY.init(task_params, jax.random.key(1)))
    return jax.jit(lambda state, key: TINY.step(ppo_drift, task_params, state, key)), state


def experience(**fields):
    """Three steps in two environments of which only some fields matter."""
    zeros = jnp.zeros((3, 2))
    return Experience(*[zeros] * 8)._replace(terminated=zeros > 0, done=zeros > 0)._replace(**fields)


def test_an_environment_that_does_not_exist_is_named_with_the_nearest():
    with pytest.raises(UserError, match="unknown environment of gymnax 'CartPole-v2'.*CartPole-v1"):
        environments.build("CartPole-v2")


def test_the_limit_of_time_ends_an_episode_but_not_for_good():
    env = environments.build("CartPole-v1")
    params = env.params.replace(max_steps_in_episode=3)
    state, observation = env.reset(KEY, params)
    seen = []
    for t in range(3):
        after = env.step(jax.random.fold_in(KEY, t), state, jnp.int32(t % 2), params)
        seen.append((bool(after.terminated), bool(after.done)))
        state, last, observation = after.state, observation, after.observation
    assert seen == [(False, False), (False, False), (False, True)]
    # The last observation goes on from the one before; the next one is of a new episode, near zero.
    np.testing.assert_allclose(after.last_observation[0], last[0] + 0.02 * last[1], rtol=1e-5)
    assert np.all(np.abs(after.observation) <= 0.05) and int(state.time) == 0


def test_an_end_for_good_wins_where_both_come_at_once():
    env = environments.build("DeepSea-bsuite")
    state, _ = env.reset(KEY, env.params)
    for t in range(env.time_limit):
        after = env.step(jax.random.fold_in(KEY, t), state, jnp.int32(0), env.params)
        state = after.state
    assert bool(after.terminated) and bool(after.done) and env.num_features == 64


def test_advantages_count_on_after_a_limit_of_time_alone():
    done = jnp.array([[False, False], [True, True], [False, False]])
    seen = experience(rewards=jnp.ones((3, 2)), done=done, terminated=done & jnp.array([True, False]))
    values, at_end = jnp.full((4, 2), 5.0), jnp.full((3, 2), 7.0)
    targets = assess(seen, values, at_end, discount=0.5, decay=0.0).targets.reshape(3, 2)
    np.testing.assert_allclose(targets, [[3.5, 3.5], [1.0, 4.5], [3.5, 3.5]])


def test_returns_are_of_episodes_that_ended():
    done = jnp.array([[False, True], [False, False], [True, True]])
    returns = jnp.array([[9.0, 4.0], [9.0, 9.0], [6.0, 2.0]])
    ended, none = experience(done=done, returns=returns), experience()
    unfinished = Unfinished(jnp.array([-10.0, -20.0]), jnp.array([10, 20]))
    assert float(mean_return(ended, unfinished, jnp.nan, 500)) == 4.0
    assert float(mean_return(none, unfinished, jnp.float32(7.0), 500)) == 7.0
    assert float(mean_return(none, unfinished, jnp.float32(jnp.nan), 500)) == -500.0  # not -15


def test_an_update_is_that_of_a_plain_loop():
    """The loss of PureJaxRL's kind, written out, with PPO's clipping in the place of a drift."""
    step, state = stepped()
    key = jax.random.key(5)
    new, loss = step(state, key)
    task_params = TINY.sample(KEY)
    k_reset, k_rollout, k_epochs = jax.random.split(key, 3)
    begun, seen = TINY._roll_out(task_params, TINY._begin(task_params, state, k_reset), k_rollout)
    value = lambda params, x: agents.apply_network(params["critic"], x)[..., 0]
    log_prob = lambda params, x, a: jax.nn.log_softmax(agents.apply_network(params["actor"], x))[jnp.arange(len(a)), a]
    values = value(state.params, jnp.concatenate([seen.observations, begun.observations[None]]))
    batch = assess(seen, values, value(state.params, seen.last_observations), 0.99, 0.95)

    def loss_fn(params, x, a, old_log_prob, old_value, gae, target):
        log_ratio = log_prob(params, x, a) - old_log_prob
        ratio, gae = jnp.exp(log_ratio), (gae - gae.mean()) / (gae.std() + 1e-8)
        actor = -jnp.minimum(ratio * gae, jnp.clip(ratio, 0.8, 1.2) * gae).mean()
        v = value(params, x)
        clipped = old_value + jnp.clip(v - old_value, -0.2, 0.2)
        critic = 0.5 * jnp.maximum((v - target) ** 2, (clipped - target) ** 2).mean()
        log_probs = jax.nn.log_softmax(agents.apply_network(params["actor"], x))
        return actor + 0.5 * critic + 0.01 * jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1).mean()

    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.01, eps=1e-5))
    params, opt_state, grad = state.params, tx.init(state.params), jax.jit(jax.grad(loss_fn))
    for k_epoch in jax.random.split(jax.random.split(k_epochs)[0], 2):
        for places in jax.random.permutation(k_epoch, 16).reshape(2, 8):
            grads = grad(params, *jax.tree.map(lambda x, places=places: x[places], batch))
            updates, opt_state = tx.update(grads, opt_state)
            params = optax.apply_updates(params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), new.params, params)
    assert int(new.update) == 1 and np.isfinite(loss)


def test_an_optimizer_is_given_all_that_it_may_read_and_its_own_number_of_steps():
    task_params = TINY.sample(KEY)
    x = TINY.init(task_params, jax.random.key(1))
    seen = []

    def update(grads, state, params=None, *, value, value_fn, key, activations):
        norms = {name: optax.tree.norm(g) for name, g in grads.items()}
        seen.append((jax.tree.map(jnp.shape, activations), key.shape, value.shape, value_fn(params).shape))
        return jax.tree.map(lambda g: -0.01 * g, grads), jax.tree.map(jnp.maximum, state, norms)

    spy = optax.GradientTransformationExtraArgs(
        lambda params: {"actor": jnp.zeros(()), "critic": jnp.zeros(())}, update
    )
    state, _ = jax.jit(lambda key: TINY.step(spy, task_params, TINY.start(spy, task_params, x), key))(KEY)
    units = {"Dense_0": (4,)}
    assert seen[0][0] == {"actor": units | {"Dense_1": (2,)}, "critic": units | {"Dense_1": (1,)}}
    assert seen[0][1:] == ((), (), ())
    largest = jax.tree.leaves(state.opt_state)  # of actor and critic, each clipped by itself
    assert all(0.0 < float(norm) <= 0.5 + 1e-6 for norm in largest)
    assert num_calls(TINY, "optimizer", 10) == 40 and num_calls(TINY, "drift", 10) == 10


def test_agents_side_by_side_are_trained_as_one_by_one():
    step, state = stepped()
    keys = jax.random.split(KEY, 2)
    together, _ = jax.jit(jax.vmap(step, (None, 0)))(state, keys)
    for i, key in enumerate(keys):
        alone, _ = step(state, key)
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=2e-4, atol=1e-6), together.params, alone.params
        )


def test_an_agent_is_measured_by_whole_episodes():
    """An agent that always pushes to one side falls after as many steps as in gymnax itself."""
    task_params = TINY.sample(KEY)
    params = TINY.init(task_params, KEY)
    params["actor"]["Dense_1"]["bias"] = jnp.array([100.0, -100.0])
    measured = jax.jit(lambda params: TINY.evaluate(task_params, params, "test"))(params)
    env, env_params = gymnax.make("CartPole-v1")
    k_reset, _ = jax.random.split(jax.random.key(0))
    lengths = []
    for key in jax.random.split(k_reset, 32):
        _, state = env.reset(key, env_params)
        length, done = 0, False
        while not done:
            _, state, _, done, _, _ = env.step(KEY, state, 0, env_params)
            length += 1
        lengths.append(length)
    assert float(measured["return"]) == np.mean(lengths) == -float(measured["loss"])


def test_actions_may_be_vectors():
    task = dataclasses.replace(TINY, environment="Pendulum-v1")
    task_params = task.sample(KEY)
    params = task.init(task_params, KEY)
    policy = task._policy(params, jnp.ones((5, 3)))
    actions = policy.sample(KEY)
    expected = jax.scipy.stats.norm.logpdf(actions, policy.mean, 1.0)[:, 0]
    np.testing.assert_allclose(policy.log_prob(actions), expected, rtol=1e-5)
    np.testing.assert_allclose(policy.entropy(), 0.5 * np.log(2 * np.pi * np.e), rtol=1e-6)
    step = jax.jit(lambda state: task.step(ppo_drift, task_params, state, KEY))
    state, loss = step(task.start(ppo_drift, task_params, params))
    # No episode has ended after 8 of 200 steps: the mean of 8 rewards, times 200.
    assert float(state.mean_return) < -100.0 and loss == -state.mean_return
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


def test_parameters_of_the_environment_are_drawn():
    task = dataclasses.replace(TINY, varied=(("gravity", 5.0, 15.0), ("length", 0.25, 1.0)))
    drawn = jax.vmap(task.sample)(jax.random.split(KEY, 100))
    assert 5.0 <= drawn.gravity.min() < 6.0 and 14.0 < drawn.gravity.max() <= 15.0
    assert len(np.unique(drawn.length)) == 100 and np.all(drawn.masscart == 1.0)
    with pytest.raises(UserError, match="CartPole-v1 has no parameter 'gravty', it has .*gravity"):
        dataclasses.replace(TINY, varied=(("gravty", 1.0, 2.0),)).sample(KEY)


@pytest.mark.parametrize("settings", [{"num_environments": 0}, {"rollout_steps": 3, "num_minibatches": 4}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(UserError, match="num_environments must be at least 1|cannot be cut into 4 minibatches"):
        dataclasses.replace(TINY, **settings)
