"""Disco103 as an update rule, with small random weights; tests/golden has the released ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import metaopt
from metaopt import families, importers
from metaopt.core import Rollout, UpdateRule
from metaopt.errors import UserError
from metaopt.importers import disco as importer
from metaopt.objectives.disco import Config, network, rule, values
from tests.metaopt.cases import close

STEPS, BATCH, ACTIONS, INPUTS = 4, 2, 3, 2
RATE = 0.1
LEARNED = families.build("disco")


@functools.cache
def theta(seed: int = 0):
    """Fresh weights with biases that are not zero: else the gate is closed before an agent has lived."""
    fresh, rng = LEARNED.init(jax.random.key(seed)), np.random.default_rng(seed)
    return jax.tree.map(lambda w: w + 0.1 * rng.normal(size=w.shape).astype(np.float32), fresh)


RULE = LEARNED.bind(theta())
HEADS = RULE.heads(ACTIONS)


def agent(params, observations):
    """One matrix for each head."""
    dense = lambda name, shape: (observations @ params[name]).reshape(*observations.shape[:-1], *shape)
    return {name: dense(name, shape) for name, shape in HEADS.items()}


def table(params, observations):
    """An agent whose parameters are its outputs."""
    del observations
    return params


def new_agent(seed: int = 0, dtype=jnp.float32):
    key, sizes = jax.random.key(seed), {name: int(np.prod(shape)) for name, shape in HEADS.items()}
    return {
        name: jax.random.normal(jax.random.fold_in(key, i), (INPUTS, size)).astype(dtype)
        for i, (name, size) in enumerate(sizes.items())
    }


def new_rollout(seed: int = 0, terminated=((1, 0),), cut=()) -> Rollout:
    """Random; ``terminated`` and ``cut`` are steps and environments."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    ends = np.zeros((2, STEPS, BATCH), bool)
    for i, places in enumerate((terminated, cut)):
        for place in places:
            ends[i][place] = True
    return Rollout(
        observations=normal(STEPS + 1, BATCH, INPUTS),
        actions=jnp.asarray(rng.integers(ACTIONS, size=(STEPS, BATCH)), jnp.int32),
        rewards=normal(STEPS, BATCH),
        terminated=jnp.asarray(ends[0]),
        done=jnp.asarray(ends[0] | ends[1]),
        logits=normal(STEPS, BATCH, ACTIONS),
    )


def outputs_of(rollout: Rollout):
    return agent(new_agent(), rollout.observations)


def update(theta, params, state, rollout):
    """One step of gradient descent."""
    bound = LEARNED.bind(theta)
    grad = jax.value_and_grad(lambda p: bound.loss(agent, p, rollout, state), has_aux=True)
    (loss, state), grads = grad(params)
    return jax.tree.map(lambda p, g: p - RATE * g, params, grads), state, loss


def many(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


compiled = jax.jit(update)
tell = jax.jit(lambda seen, lifetime: network.apply(theta(), seen, lifetime)[0])
observe = jax.jit(lambda outputs, rollout: rule.observe(Config(), outputs, outputs, rollout, RULE.init(())))
table_grads = jax.jit(jax.grad(lambda outputs, rollout: RULE.loss(table, outputs, rollout, RULE.init(outputs))[0]))


def test_heads_and_state():
    assert HEADS == {"logits": (3,), "y": (600,), "z": (3, 600), "q": (3, 601), "aux": (3, 3)}
    assert sum(x.size for x in jax.tree.leaves(theta())) == 754_778
    params = new_agent()
    state = RULE.init(params)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(state))
    describe = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    _, after, loss = compiled(theta(), params, state, new_rollout())
    assert describe(after) == describe(state) and loss.shape == () and np.isfinite(loss)
    jax.jit(lambda *both: both, donate_argnums=(0, 1))(params, state)  # they share no buffers


def test_jit_is_eager():
    arguments = new_agent(), new_rollout(), RULE.init(new_agent(1))
    loss, state = RULE.loss(agent, *arguments)
    _, expected_state, expected = compiled(theta(), arguments[0], arguments[2], arguments[1])
    close((loss, state), (expected, expected_state), rtol=1e-4, atol=1e-5)


def test_vmap_is_a_loop():
    runs = [(theta(i), new_agent(i), RULE.init(new_agent(i + 2)), new_rollout(i)) for i in range(2)]
    close(jax.jit(jax.vmap(update))(*many(runs)), many([compiled(*run) for run in runs]), rtol=1e-4, atol=1e-5)


def test_a_scan_of_two_updates_is_two_calls():
    rollouts, params = [new_rollout(i) for i in range(2)], new_agent()
    state, losses = RULE.init(params), []
    begin = params, state
    for rollout in rollouts:
        params, state, loss = compiled(theta(), params, state, rollout)
        losses.append(loss)

    def step(carry, rollout):
        *carry, loss = update(theta(), *carry, rollout)
        return tuple(carry), loss

    scanned = jax.jit(lambda carry, xs: jax.lax.scan(step, carry, xs))(begin, many(rollouts))
    close(scanned, ((params, state), jnp.stack(losses)), rtol=1e-4, atol=1e-5)


def test_the_target_network_is_a_moving_mean_of_the_parameters_before_each_update():
    params = new_agent()
    state = RULE.init(jax.tree.map(jnp.zeros_like, params))
    for share in (0.1, 0.19):
        _, state, _ = compiled(theta(), params, state, new_rollout())
        close(state.target, jax.tree.map(lambda p, share=share: share * p, params), rtol=1e-5)


def test_an_agent_is_drawn_to_what_it_is_told_and_to_nothing_else():
    rollout = new_rollout()
    outputs = outputs_of(rollout)
    seen, td, state = observe(outputs, rollout)
    told = tell(seen, state.lifetime)
    grads, steps = table_grads(outputs, rollout), STEPS * BATCH
    now = {name: jax.nn.softmax(x[:-1]) for name, x in outputs.items()}
    drawn = lambda name, logits: (now[name] - jax.nn.softmax(logits)) / steps
    tolerance = {"rtol": 1e-4, "atol": 1e-6}
    close(grads["logits"][:-1], drawn("logits", told.policy), **tolerance)
    close(grads["y"][:-1], drawn("y", told.y), **tolerance)
    taken = np.asarray(jax.nn.one_hot(rollout.actions, ACTIONS))[..., None]
    close(grads["z"][:-1], taken * drawn("z", told.z[:, :, None]), **tolerance)
    goes_on = ~np.asarray(rollout.done)[:, :, None, None]
    close(grads["aux"][:-1], goes_on * taken * drawn("aux", outputs["logits"][1:, :, None]), **tolerance)
    returns = values.expectation(network.take(outputs["q"][:-1], rollout.actions)) + td
    difference = (now["q"] - values.two_hot(returns)[:, :, None]) / steps
    close(grads["q"][:-1], 0.2 * taken * difference, **tolerance)
    assert not any(np.any(g[-1]) for g in grads.values())  # the last row is read only
    np.testing.assert_allclose(state.advantage.mean, 0.01 * seen.advantages.mean(), rtol=1e-5)
    np.testing.assert_allclose(values.normalize(state.td, td).std(), 1.0, rtol=1e-4)


def test_values():
    x = jnp.array([-50_000.0, -300.0, -1.0, -1e-3, 0.0, 0.5, 7.0, 50_000.0])
    close(values.expand(values.compress(x)), x, rtol=1e-5, atol=1e-6)
    two_hot = values.two_hot(jnp.append(x, 1e9))
    bins = np.linspace(-300, 300, 601)
    np.testing.assert_allclose(two_hot @ bins, np.append(values.compress(x), 300.0), rtol=1e-4, atol=1e-4)
    assert np.all(np.sum(np.asarray(two_hot) > 0, axis=-1) <= 2)
    np.testing.assert_allclose(values.expectation(jnp.log(two_hot[1:-1] + 1e-30)), x[1:], rtol=1e-3, atol=1e-4)


def test_returns_are_corrected_up_to_the_end_of_an_episode():
    rng = np.random.default_rng(0)
    r, q, c, v = (rng.normal(size=(n, BATCH)).astype(np.float32) for n in (STEPS, STEPS, STEPS, STEPS + 1))
    gamma = np.full((STEPS, BATCH), 0.9, np.float32)
    gamma[1, 0] = 0.0  # terminal
    cut = np.zeros((STEPS, BATCH), bool)
    cut[2, 1] = True
    expected = np.zeros((STEPS, BATCH))
    expected[-1] = r[-1] + gamma[-1] * v[-1]
    for t in (2, 1, 0):
        expected[t] = r[t] + gamma[t] * (v[t + 1] + c[t + 1] * (expected[t + 1] - q[t + 1]))
        expected[t] = np.where(cut[t], q[t], expected[t])
    returns = values.corrected_returns(*map(jnp.asarray, (r, gamma, c, v, q, cut)))
    close(returns, expected, rtol=1e-5, atol=1e-6)
    assert returns[1, 0] == r[1, 0]


@pytest.mark.parametrize("ends", [{"terminated": ((1, 0),)}, {"terminated": (), "cut": ((1, 0),)}, {"terminated": ()}])
def test_what_follows_an_episode_says_nothing_about_it(ends):
    rollout = new_rollout(**ends)
    seen, _, state = observe(outputs_of(rollout), rollout)
    later = seen._replace(rewards=seen.rewards.at[2, 0].add(1.0))
    told, other = (tell(x, state.lifetime).y[:, 0] for x in (seen, later))
    changed = np.any(np.asarray(told) != other, axis=-1).tolist()
    goes_on = not (ends["terminated"] or ends.get("cut"))
    assert changed == [goes_on, goes_on, True, False]


def test_a_step_that_was_cut_by_a_limit_of_time_is_left_out():
    rollout = new_rollout(terminated=(), cut=((2, 1),))
    grads = table_grads(outputs_of(rollout), rollout)
    for name, g in grads.items():
        assert not np.any(g[2, 1]) and np.any(g[2, 0]) and np.any(g[1, 1]), name
    every = rollout._replace(done=jnp.ones_like(rollout.done))
    assert not any(np.any(g) for g in table_grads(outputs_of(every), every).values())


def test_meta_gradients_through_two_updates():
    """Of an agent after two updates, in the weights of the rule."""
    rollouts = many([new_rollout(i) for i in range(2)])
    weights = jax.random.normal(jax.random.key(5), ravel_pytree(new_agent())[0].shape)

    @jax.jit
    @jax.value_and_grad
    def outcome(theta):
        params = new_agent()
        carry, _ = jax.lax.scan(lambda c, x: (update(theta, *c, x)[:2], None), (params, RULE.init(params)), rollouts)
        return jnp.vdot(weights, ravel_pytree(carry[0])[0])

    _, grads = outcome(theta())
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(g).all() and np.any(g), jax.tree_util.keystr(path)
    norm = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(grads)))
    moved = lambda size: outcome(jax.tree.map(lambda x, g: x + size * g / norm, theta(), grads))[0]
    np.testing.assert_allclose((moved(1e-2) - moved(-1e-2)) / 2e-2, norm, rtol=0.02)


def test_other_precisions():
    loss_of = jax.jit(lambda params, rollout, state: RULE.loss(agent, params, rollout, state))
    rollout, params = new_rollout(), new_agent(dtype=jnp.bfloat16)
    loss, state = loss_of(params, rollout, RULE.init(params))
    assert {x.dtype for x in jax.tree.leaves(state.target)} == {jnp.dtype("bfloat16")} and loss.dtype == "float32"
    types = lambda tree: jax.tree.map(lambda x: x.dtype, tree)
    with jax.enable_x64(True):
        wide = rollout._replace(rewards=rollout.rewards.astype(jnp.float64), actions=rollout.actions.astype(jnp.int64))
        params = jax.tree.map(lambda p: p.astype(jnp.float32), params)
        state = RULE.init(params)
        loss, after = loss_of(params, wide, state)
        assert loss.dtype == "float32" and types(after) == types(state)


@pytest.mark.parametrize(
    "actions, message",
    [
        (jnp.zeros((STEPS, BATCH)), r"disco is for discrete actions: .* the rollout has float32\[4, 2\]"),
        (jnp.zeros((STEPS, BATCH, 1), jnp.int32), r"the rollout has int32\[4, 2, 1\]"),
    ],
)
def test_other_actions_are_refused(actions, message):
    with pytest.raises(UserError, match=message):
        RULE.loss(agent, new_agent(), new_rollout()._replace(actions=actions), RULE.init(new_agent()))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x: {n: h for n, h in x.items() if n != "aux"}, r"output 'aux' is missing; .* shape \[5, 2, 3, 3\]"),
        (
            lambda x: x | {"y": x["y"][..., 1:]},
            r"output 'y' has shape \[5, 2, 599\]; it should have shape \[5, 2, 600\]",
        ),
        (lambda x: jax.tree.map(lambda h: h[:-1], x), r"output 'logits' has shape \[4, 2, 3\]; .* \[5, 2, 3\]"),
    ],
)
def test_other_agents_are_refused(change, message):
    wrong = lambda params, observations: change(agent(params, observations))
    with pytest.raises(UserError, match=message):
        RULE.loss(wrong, new_agent(), new_rollout(), RULE.init(new_agent()))


def test_settings():
    with pytest.raises(UserError, match="disco: discount must be from 0 to 1, got 1.5"):
        families.build("disco", discount=1.5)
    with pytest.raises(UserError, match="disco: value_cost must be 0 or more, got -1.0"):
        families.build("disco", value_cost=-1.0)


def haiku_arrays(**changes):
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in importer.SHAPES.items()} | changes
    return {name: array for name, array in arrays.items() if array is not None}


def save(path, **changes):
    np.savez(path, **haiku_arrays(**changes))
    return path


def test_released_arrays_become_theta(tmp_path):
    path = save(tmp_path / "disco_103.npz")
    folder = importers.import_file(path, tmp_path / "mine", licence="Apache-2.0")
    found, arrays = importers.read(path), haiku_arrays()
    assert (found.family, found.config) == ("disco", {}) and len(arrays) == 42
    assert jax.tree.map(np.shape, found.theta) == jax.tree.map(np.shape, theta())
    np.testing.assert_array_equal(found.theta["policy"]["hidden"]["w"], arrays["lstm/sequential_1/conv1_d/w"][0])
    np.testing.assert_array_equal(found.theta["lifetime"]["state"]["b"], arrays["lstm/linear_1/b"])
    assert isinstance(metaopt.load(folder), UpdateRule)
    jax.tree.map(np.testing.assert_array_equal, metaopt.read(folder).theta, found.theta)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"lstm/linear_2/b": None}, "it lacks 'lstm/linear_2/b'"),
        ({"lstm/linear_9/b": np.zeros(3, np.float32)}, "it holds 'lstm/linear_9/b', unknown here"),
        ({"lstm/linear_2/b": np.zeros(601, np.float32)}, r"should be float32\[600\], is float32\[601\]"),
        ({"lstm/linear_2/b": np.zeros(600)}, r"should be float32\[600\], is float64\[600\]"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path, changes, message):
    with pytest.raises(UserError, match=f"x.npz .disco weights.: .*{message}"):
        importers.read(save(tmp_path / "x.npz", **changes))
