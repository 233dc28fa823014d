"""LPG and TA-LPG as an update rule; the equations are held to the reference in tests/golden/rl_lpg.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metaopt
from metaopt import families
from metaopt.core import Rollout
from metaopt.errors import UserError
from metaopt.objectives import lpg

NUM_STEPS, NUM_AGENTS, NUM_ACTIONS, NUM_PREDICTIONS = 5, 2, 3, 4
KEY = jax.random.key(0)


def learned(temporal=False):
    return families.build("lpg", hidden=6, width_embedding=3, num_predictions=NUM_PREDICTIONS, temporal=temporal)


def apply(params, observations):
    return {head: observations @ weights for head, weights in params.items()}


def agent(key):
    """A linear agent of four features, with confident predictions so that they differ between observations."""
    k_logits, k_y = jax.random.split(key)
    return {"logits": jax.random.normal(k_logits, (4, NUM_ACTIONS)), "y": jax.random.normal(k_y, (4, NUM_PREDICTIONS))}


def rollout(key):
    k_obs, k_actions, k_rewards = jax.random.split(key, 3)
    shape = (NUM_STEPS, NUM_AGENTS)
    done = jnp.zeros(shape, bool).at[2, 0].set(True)
    return Rollout(
        observations=jax.random.normal(k_obs, (NUM_STEPS + 1, NUM_AGENTS, 4)),
        actions=jax.random.randint(k_actions, shape, 0, NUM_ACTIONS),
        rewards=jax.random.normal(k_rewards, shape),
        terminated=jnp.zeros(shape, bool),
        done=done,
        logits=jnp.zeros((*shape, NUM_ACTIONS)),
    )


def read(params, rollout):
    """Probabilities of the actions taken and predictions, for ``lpg.targets``."""
    outputs = jax.tree.map(jax.nn.softmax, apply(params, rollout.observations))
    pi = jnp.take_along_axis(outputs["logits"][:-1], rollout.actions[..., None], axis=-1)[..., 0]
    return pi, outputs["y"][:-1], outputs["y"][1:]


def assert_close(found, expected):
    """Equal up to float32 in another order of operations."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), found, expected)


def test_an_agent_is_moved_toward_targets_that_are_constants():
    theta, params, seen = learned().init(KEY), agent(KEY), rollout(KEY)
    rule = learned().bind(theta)
    assert rule.heads(NUM_ACTIONS) == {"logits": (NUM_ACTIONS,), "y": (NUM_PREDICTIONS,)}
    wanted = lpg.targets(theta, seen.rewards, seen.done, *read(params, seen))

    def by_hand(params):
        pi, y, _ = read(params, seen)
        divergence = jnp.sum(y * jnp.log(y / wanted.prediction), axis=-1)
        return jnp.mean(jnp.log(pi) * wanted.policy) + 0.5 * jnp.mean(divergence)

    found, grads = jax.value_and_grad(lambda params: rule.loss(apply, params, seen, rule.init(params))[0])(params)
    expected, expected_grads = jax.value_and_grad(by_hand)(params)
    assert_close((found, grads), (expected, expected_grads))
    np.testing.assert_allclose(lpg.regularizers(wanted)[1], np.mean(np.sum(wanted.prediction**2, axis=-1)), rtol=1e-6)


def test_the_end_of_an_episode_hides_what_comes_after():
    theta, params, seen = learned().init(KEY), agent(KEY), rollout(KEY)
    pi, y, y_next = read(params, seen)
    before = lpg.targets(theta, seen.rewards, seen.done, pi, y, y_next)
    # All of agent 0 after the step that was its last, and the prediction there, which is of the next episode.
    after = lpg.targets(
        theta,
        seen.rewards.at[3:, 0].add(1.0),
        seen.done,
        pi.at[3:, 0].multiply(0.5),
        y.at[3:, 0].set(jnp.eye(NUM_PREDICTIONS)[0]),
        y_next.at[2:, 0].set(jnp.eye(NUM_PREDICTIONS)[0]),
    )
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one[:3], other[:3])
        assert np.all(one[3:, 0] != other[3:, 0])
        np.testing.assert_array_equal(one[:, 1], other[:, 1])


@pytest.mark.parametrize("temporal", [False, True], ids=["lpg", "ta_lpg"])
def test_every_entry_of_theta_moves_the_loss_of_an_agent_that_was_updated(temporal):
    family, params, seen = learned(temporal), agent(KEY), rollout(KEY)

    @jax.jit
    @jax.grad
    def meta_gradient(theta):
        rule = family.bind(theta, num_steps=10)
        grads, state = jax.grad(lambda p: rule.loss(apply, p, seen, rule.init(p)), has_aux=True)(params)
        return rule.loss(apply, jax.tree.map(lambda p, g: p - g, params, grads), seen, state)[0]

    theta = jax.tree.map(lambda x: x + 0.1, family.init(KEY))  # no unit of the small embedding is dead
    for path, grad in jax.tree.leaves_with_path(meta_gradient(theta)):
        assert np.all(np.isfinite(grad)) and np.any(grad != 0), jax.tree_util.keystr(path)


def test_one_loss_however_it_is_run():
    """Jitted and eager, vmapped and looped, scanned and called; num_steps is traced."""
    family, seen = learned(temporal=True), rollout(KEY)

    def loss(key, num_steps):
        params = agent(key)
        rule = family.bind(family.init(key), num_steps=num_steps)
        return rule.loss(apply, params, seen, rule.init(params))[0]

    keys, lengths = jax.random.split(KEY, 2), jnp.array([10, 300])
    looped = jnp.stack([loss(key, int(num)) for key, num in zip(keys, lengths, strict=True)])
    assert_close(jax.jit(jax.vmap(loss))(keys, lengths), looped)

    params, rule = agent(KEY), family.bind(family.init(KEY), num_steps=3)
    state, losses = rule.init(params), []
    for _ in range(5):
        value, state = rule.loss(apply, params, seen, state)
        losses.append(value)
    last, scanned = jax.lax.scan(lambda s, _: rule.loss(apply, params, seen, s)[::-1], rule.init(params), length=5)
    assert_close(scanned, jnp.stack(losses))
    assert last.num_updates == state.num_updates == 5
    assert losses[0] != losses[1] != losses[2] != losses[3]
    assert losses[3] == losses[4]  # beyond the planned length nothing changes


def test_ta_lpg_reads_the_fraction_of_training_and_its_length():
    theta, params, seen = learned(temporal=True).init(KEY), agent(KEY), rollout(KEY)
    rule = learned(temporal=True).bind(theta, num_steps=40)
    pi, y, y_next = read(params, seen)
    wanted = lpg.targets(theta, seen.rewards, seen.done, pi, y, y_next, (jnp.float32(0.3), jnp.log(40.0)))
    found, _ = rule.loss(apply, params, seen, lpg.State(jnp.int32(12)))
    np.testing.assert_allclose(found, lpg.agent_loss(pi, y, wanted, 0.5), rtol=1e-5)


def test_ta_lpg_is_refused_without_a_length():
    family = learned(temporal=True)
    with pytest.raises(ValueError, match="TA-LPG looks at the fraction of training done: pass num_steps="):
        family.bind(family.init(KEY))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"actions": jnp.zeros(5, jnp.int32)}, r"rollout.actions must be \(T, B\)"),
        ({"rewards": jnp.zeros((2, 5))}, r"rollout.rewards must be like rollout.actions, \(5, 2\); got \(2, 5\)"),
        ({"done": jnp.zeros((5, 2, 1))}, "rollout.done must be like"),
        ({"logits": jnp.zeros((5, 2))}, "rollout.logits must be"),
        ({"observations": jnp.zeros((5, 2, 4))}, r"rollout.observations must begin .*\(6, 2\).*got \(5, 2, 4\)"),
    ],
)
def test_a_wrong_rollout_is_named(change, message):
    rule = learned().bind(learned().init(KEY))
    with pytest.raises(UserError, match=message):
        rule.loss(apply, agent(KEY), rollout(KEY)._replace(**change), rule.init(()))


@pytest.mark.parametrize(
    "heads, message",
    [
        ({"y": None}, r"a head 'y', \(6, 2, 4\); got nothing"),
        ({"y": jnp.zeros((4, 3))}, r"a head 'y', \(6, 2, 4\); got \(6, 2, 3\)"),
        ({"logits": jnp.zeros((4, 7))}, r"a head 'logits', \(6, 2, 3\); got \(6, 2, 7\)"),
    ],
)
def test_an_agent_with_other_heads_is_refused(heads, message):
    rule = learned().bind(learned().init(KEY))
    params = {head: x for head, x in (agent(KEY) | heads).items() if x is not None}
    with pytest.raises(UserError, match=message):
        rule.loss(apply, params, rollout(KEY), rule.init(params))


@pytest.mark.parametrize("settings", [{"hidden": 0}, {"num_predictions": 0}, {"alpha_y": -0.5}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(UserError, match=f"lpg: .*{next(iter(settings))}"):
        families.build("lpg", **settings)


def test_a_checkpoint_loads_as_the_rule_that_was_saved(tmp_path):
    theta, params, seen = learned(temporal=True).init(KEY), agent(KEY), rollout(KEY)
    settings = {"hidden": 6, "width_embedding": 3, "num_predictions": NUM_PREDICTIONS, "temporal": True}
    folder = metaopt.save(tmp_path / "mine", "lpg", settings, theta)
    loaded, ours = metaopt.load(folder, num_steps=10), learned(temporal=True).bind(theta, num_steps=10)
    losses = [rule.loss(apply, params, seen, rule.init(params))[0] for rule in (loaded, ours)]
    assert losses[0] == losses[1]
