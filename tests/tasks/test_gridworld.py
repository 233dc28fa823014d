"""Gridworlds: moves, objects and limits of levels made by hand; sampled levels; an agent that learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import families
from metaopt.checks import check_task
from metaopt.core import UpdateRule
from metaopt.errors import UserError
from tasks import GridWorld
from tasks import gridworld_env as env
from tasks.gridworld import collect

UP, DOWN, LEFT, RIGHT, STAY = range(5)
KEY = jax.random.key(0)
SMALL = functools.partial(
    GridWorld, side=4, num_objects=2, num_walls=3, num_envs=4, rollout_length=3, evaluation_envs=4, evaluation_length=8
)


def level(objects=((3, 3),), walls=(), limit=20, reward=1.0, p_terminate=0.0, p_respawn=0.0):
    """A grid of 4 x 4 that starts at its upper left corner."""
    num = len(objects)
    of_objects = lambda value: jnp.broadcast_to(jnp.float32(value), (num,))
    return env.Level(
        walls=jnp.zeros((4, 4), bool).at[tuple(jnp.array(walls, int).reshape(-1, 2).T)].set(True),
        start=jnp.zeros(2, jnp.int32),
        cells=jnp.array(objects, jnp.int32),
        exists=jnp.ones(num, bool),
        rewards=of_objects(reward),
        p_terminate=of_objects(p_terminate),
        p_respawn=of_objects(p_respawn),
        limit=jnp.int32(limit),
    )


def walk(level, *actions):
    """The position after every action, and the outcomes; it goes on beyond the end."""
    state, positions, outcomes = env.reset(level), [], []
    for i, action in enumerate(actions):
        state, outcome = step(level, state, jnp.int32(action), jax.random.key(i))
        positions.append(tuple(state.position.tolist()))
        outcomes.append(outcome)
    return positions, [[float(x) for x in field] for field in zip(*outcomes, strict=True)], state


step = jax.jit(env.step)


def test_moves_and_the_border():
    positions, _, _ = walk(level(), RIGHT, DOWN, LEFT, UP, STAY, UP, LEFT, DOWN, DOWN, DOWN, DOWN)
    assert positions == [(0, 1), (1, 1), (1, 0), (0, 0), (0, 0), (0, 0), (0, 0), (1, 0), (2, 0), (3, 0), (3, 0)]


def test_walls_are_in_the_way():
    positions, _, _ = walk(level(walls=[(0, 1), (2, 0)]), RIGHT, DOWN, DOWN, RIGHT, UP)
    assert positions == [(0, 0), (1, 0), (1, 0), (1, 1), (1, 1)]


def test_an_object_is_collected_once_and_never_respawns_with_probability_zero():
    _, (rewards, terminated, done), state = walk(level([(0, 1)], reward=0.5), RIGHT, STAY, LEFT, RIGHT)
    assert rewards == [0.5, 0.0, 0.0, 0.0] and not any(terminated) and not any(done) and not state.present[0]


def test_an_object_respawns_one_step_later_with_probability_one():
    _, (rewards, *_), _ = walk(level([(0, 1)], p_respawn=1.0), RIGHT, STAY, STAY, STAY, STAY)
    assert rewards == [1.0, 0.0, 1.0, 0.0, 1.0]


def test_an_object_that_the_level_does_not_have_is_never_there():
    made = level([(0, 1), (0, 2)], p_respawn=1.0)._replace(exists=jnp.array([True, False]))
    _, (rewards, *_), _ = walk(made, RIGHT, RIGHT, STAY, STAY)
    assert rewards == [1.0, 0.0, 0.0, 0.0]


def test_an_object_terminates_with_probability_one():
    _, (rewards, terminated, done), _ = walk(level([(1, 0)], reward=-1.0, p_terminate=1.0), RIGHT, LEFT, DOWN)
    assert rewards == [0.0, 0.0, -1.0] and terminated == done == [0.0, 0.0, 1.0]


def test_a_limit_of_time_is_done_and_not_terminated():
    _, (_, terminated, done), _ = walk(level(limit=3), RIGHT, RIGHT, STAY)
    assert terminated == [0.0, 0.0, 0.0] and done == [0.0, 0.0, 1.0]


def test_an_observation_is_the_cell_and_what_is_present():
    made = level([(0, 1), (2, 2)])
    assert env.observe(made, env.reset(made)) == 0 + 16 * 3
    _, _, state = walk(made, RIGHT, DOWN)
    assert env.observe(made, state) == 5 + 16 * 2 < env.num_observations(4, 2) == 64


def test_sampled_levels_are_those_of_the_settings():
    levels = jax.device_get(jax.jit(jax.vmap(GridWorld().sample))(jax.random.split(KEY, 500)))
    inside = ~levels.walls.all(axis=2)
    sizes = inside.sum(axis=1)  # a row full of walls is rare
    assert set(sizes) == set(range(4, 11))
    assert 20 <= levels.limit.min() < 25 and 600 < levels.limit.max() <= 750
    np.testing.assert_allclose(np.log(levels.limit).mean(), np.log(20 * 750) / 2, atol=0.2)
    assert set(levels.exists.sum(axis=1)) == {1, 2, 3, 4, 5}
    assert levels.rewards[:, 0].min() >= 0 and levels.rewards[:, 1:].min() < -0.9 and levels.rewards.max() < 1
    for p, (low, high) in ((levels.p_terminate, env.P_TERMINATE), (levels.p_respawn, env.P_RESPAWN)):
        assert low <= p.min() < 1.1 * low and 0.9 * high < p.max() <= high
    for walls, start, cells in zip(levels.walls, levels.start, levels.cells, strict=True):
        assert not walls[tuple(start)] and not walls[tuple(cells.T)].any()
        assert len({tuple(start), *map(tuple, cells)}) == 6
    whole = levels.walls[(levels.limit > 0) & ~levels.walls[:, -1].all(axis=1) & ~levels.walls[:, :, -1].all(axis=1)]
    assert len(whole) and np.all(whole.sum(axis=(1, 2)) == 15)


def act_always(action, side=4, num_objects=1):
    """The parameters of an agent that does one thing only."""
    logits = jnp.zeros(5).at[action].set(1e3)
    return {"logits": jnp.tile(logits, (env.num_observations(side, num_objects), 1))}


def test_environments_begin_anew_and_go_on():
    made = level([(0, 2)], p_terminate=1.0)
    envs = jax.tree.map(lambda x: x[None], env.reset(made))
    first, envs = collect(made, act_always(RIGHT), envs, KEY, 3)
    then, _ = collect(made, act_always(RIGHT), envs, KEY, 2)
    here, there = 16 + np.arange(2), 16  # the object is there until the episode ends
    np.testing.assert_array_equal(first.observations[:, 0], [*here, there, there + 1])
    np.testing.assert_array_equal(first.rewards[:, 0], [0, 1, 0])
    np.testing.assert_array_equal(first.terminated, first.done)
    np.testing.assert_array_equal(first.done[:, 0], [False, True, False])
    assert then.observations[0] == there + 1 and then.rewards.tolist() == [[1.0], [0.0]]
    np.testing.assert_array_equal(first.logits[:, 0, RIGHT], [1e3] * 3)


def test_the_return_of_an_episode_is_finite_whether_it_ends_or_not():
    task = SMALL(num_objects=1)
    evaluate = jax.jit(task.evaluate, static_argnums=2)
    found = evaluate(level([(0, 2)], reward=0.5, p_terminate=1.0), act_always(RIGHT), "test")
    assert found == {"loss": -0.5, "return": 0.5, "ended": 1.0}  # the first episode alone counts
    found = evaluate(level([(0, 2)], reward=0.5, limit=30, p_respawn=1.0), act_always(RIGHT), "test")
    assert found == {"loss": -0.5, "return": 0.5, "ended": 0.0}  # eight steps, of which the second collects
    assert evaluate(level(), act_always(STAY), "test", KEY) == {"loss": 0.0, "return": 0.0, "ended": 0.0}


def advantage_actor_critic(gamma=0.95):
    """A hand-written rule: policy gradient with the returns of the rollout, and a value function."""

    def loss(apply, params, rollout, state):
        outputs = apply(params, rollout.observations)
        value = outputs["value"]

        def backwards(following, step):
            reward, done = step
            following = reward + gamma * jnp.where(done, 0.0, following)
            return following, following

        _, returns = jax.lax.scan(
            backwards, jax.lax.stop_gradient(value[-1]), (rollout.rewards, rollout.done), reverse=True
        )
        log_policy = jax.nn.log_softmax(outputs["logits"][:-1])
        log_prob = jnp.take_along_axis(log_policy, rollout.actions[..., None], axis=-1)[..., 0]
        gap = returns - value[:-1]
        return jnp.mean(-log_prob * jax.lax.stop_gradient(gap) + 0.5 * gap**2), state

    return UpdateRule(lambda num_actions: {"logits": (num_actions,), "value": ()}, lambda params: (), loss)


@functools.cache
def run(num_steps=150):
    """Losses of a training in a level with one object, and measures before and after."""
    task = GridWorld(
        side=4, num_objects=1, num_walls=3, num_envs=16, predictions=(("value", ()),), evaluation_length=20
    )
    rule, made = advantage_actor_critic(), level([(3, 3)], p_terminate=1.0)

    @jax.jit
    def train(params):
        step = lambda state, key: task.step(rule, made, state, key)
        state, losses = jax.lax.scan(step, task.start(rule, made, params), jax.random.split(KEY, num_steps))
        return task.solution(state), losses

    before = task.init(made, KEY)
    after, losses = train(before)
    return losses, task.evaluate(made, before, "test"), task.evaluate(made, after, "test")


def test_an_agent_learns_to_find_an_object():
    losses, before, after = run()
    assert before["return"] < 0.6 < 0.95 < after["return"]
    assert np.mean(losses[:10]) > -0.6 and np.mean(losses[-10:]) < -0.95


def test_the_loss_is_minus_the_mean_return_of_what_ended():
    """Three environments always go right; at first none has ended, and the rate of reward counts."""
    task = SMALL(num_objects=1, num_envs=3, rollout_length=2, predictions=())
    stuck = UpdateRule(lambda num: {"logits": (num,)}, lambda params: (), lambda *arguments: (0.0, ()))
    made = level([(0, 1)], reward=0.25, limit=3)
    state, losses = task.start(stuck, made, act_always(RIGHT)), []
    for _ in range(3):  # steps 1 and 2, 3 and 4, 5 and 6
        state, loss = task.step(stuck, made, state, KEY)
        losses.append(float(loss))
    # One reward in each episode of three steps: in two steps half of it a step, for a limit of three steps.
    assert losses == [-0.25 / 2 * 3, -0.25, -0.25]
    assert state.returns.tolist() == [0.0, 0.0, 0.0]


def test_vmap_is_a_loop():
    task, learned = SMALL(), families.build("lpg", hidden=4, width_embedding=2)

    @jax.jit
    def run(key):
        made, rule = task.sample(key), learned.bind(learned.init(key))
        state = task.start(rule, made, task.init(made, key))
        state, losses = jax.lax.scan(lambda s, k: task.step(rule, made, s, k), state, jax.random.split(key, 2))
        return task.solution(state), losses, task.evaluate(made, task.solution(state), "valid", key)

    keys = jax.random.split(KEY, 3)
    looped = jax.tree.map(lambda *x: jnp.stack(x), *map(run, keys))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), jax.vmap(run)(keys), looped)


def test_what_an_agent_becomes_is_differentiable_in_theta():
    """Also where a gradient is zero: here that of the prediction."""
    task, made, learned = SMALL(), SMALL().sample(KEY), families.build("lpg", hidden=4, alpha_y=0.0)

    @jax.jit
    @jax.grad
    def slope(theta):
        rule = learned.bind(theta)
        state = task.start(rule, made, task.init(made, KEY))
        state, _ = task.step(rule, made, state, KEY)
        return jnp.sum(state.params["logits"][:, UP]) + jnp.sum(state.params["y"])

    slopes = jax.tree.leaves(slope(learned.init(KEY)))
    assert all(np.all(np.isfinite(x)) for x in slopes) and any(np.any(x != 0) for x in slopes)


def test_the_task_keeps_its_contract():
    learned = families.build("lpg", hidden=4, temporal=True)
    check_task(SMALL(), lambda theta: learned.bind(theta, num_steps=jnp.int32(7)), learned.init(KEY))


def test_a_gradient_is_clipped_for_each_head():
    task = SMALL(num_objects=1, predictions=(("value", ()),))
    params = task.init(level(), KEY)
    direction = {head: jnp.zeros_like(x).at[0].set(1.0) for head, x in params.items()}

    def loss(apply, params, rollout, state):
        return sum(jnp.sum(direction[head] * params[head]) for head in params), state

    rule = UpdateRule(advantage_actor_critic().heads, lambda params: (), loss)
    state, _ = task.step(rule, level(), task.start(rule, level(), params), KEY)
    moved = jax.tree.map(lambda old, new: np.linalg.norm(np.subtract(new, old)), params, state.params)
    np.testing.assert_allclose([moved["logits"], moved["value"]], [40 * 0.5, 4 * 0.5], rtol=1e-5)


def test_a_rule_that_asks_for_other_heads_is_told_the_setting():
    task, made = SMALL(), SMALL().sample(KEY)
    with pytest.raises(UserError, match=r"the rule asks for heads .*set predictions=\(\('value', \(\)\),\) of"):
        task.start(advantage_actor_critic(), made, task.init(made, KEY))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"smallest": 11}, "smallest <= side"),
        ({"num_walls": 16}, "num_walls < smallest"),
        ({"shortest_limit": 800}, "shortest_limit <= longest_limit"),
        ({"num_envs": 0}, "num_envs must be at least 1"),
        ({"clip": 0.0}, "clip must be above 0"),
        ({"evaluation_length": 0}, "evaluation_length must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GridWorld(**settings)
