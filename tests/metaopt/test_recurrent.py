"""The families with a recurrent state for every coordinate, and the cells they are built from."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import families
from metaopt.nn import gru, lstm
from metaopt.optimizers import coordinate_lstm, open
from metaopt.optimizers.common import tiling
from tasks import ImageMLP

KEY = jax.random.key(0)
draw = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape)
close = lambda a, b, rtol=1e-5, atol=1e-6: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)  # float32 arithmetic


def test_the_lstm_is_that_of_flax_with_a_forget_gate_that_starts_open():
    weights = lstm.init(KEY, 3, 4)
    x, state = draw(1, 5, 3), lstm.LSTMState(draw(2, 5, 4), draw(3, 5, 4))
    kernels = dict(zip("igfo", jnp.split(weights["w"], 4, axis=1), strict=True))
    params = {f"i{gate}": {"kernel": w[:3]} for gate, w in kernels.items()}
    ones = {gate: jnp.full(4, float(gate == "f")) for gate in kernels}
    params |= {f"h{gate}": {"kernel": w[3:], "bias": ones[gate]} for gate, w in kernels.items()}
    (cell, hidden), _ = nn.LSTMCell(4).apply({"params": params}, (state.cell, state.hidden), x)
    ours = lstm.step(weights, x, state)
    close(ours.hidden, hidden)
    close(ours.cell, cell)


def test_a_stack_feeds_each_layer_the_output_of_the_one_below():
    weights = lstm.init_stack(KEY, 2, 4, 2)
    first, second = lstm.step_stack(weights, draw(1, 3, 2), (lstm.zeros((3,), 4), lstm.zeros((3,), 4)))
    below = lstm.step(weights["layer0"], draw(1, 3, 2), lstm.zeros((3,), 4))
    np.testing.assert_array_equal(first.hidden, below.hidden)
    np.testing.assert_array_equal(second.hidden, lstm.step(weights["layer1"], below.hidden, lstm.zeros((3,), 4)).hidden)


def test_the_gru_is_that_of_flax():
    weights, x, hidden = gru.init(KEY, 3, 4), draw(1, 5, 3), draw(2, 5, 4)
    weights |= {"bi": draw(3, 12), "bh": draw(4, 4)}
    split = lambda name: dict(zip("rzn", jnp.split(weights[name], 3, axis=-1), strict=True))
    kernels, recurrent, biases = split("wi"), split("wh"), split("bi")
    params = {f"i{gate}": {"kernel": kernels[gate], "bias": biases[gate]} for gate in "rzn"}
    params |= {f"h{gate}": {"kernel": recurrent[gate]} for gate in "rzn"}
    params["hn"]["bias"] = weights["bh"]
    close(gru.step(weights, x, hidden), nn.GRUCell(4).apply({"params": params}, hidden, x)[0])


def test_gradients_of_any_size_become_a_log_and_a_sign():
    g = jnp.array([1.0, -np.exp(-5), np.exp(-12), -np.exp(-10) / 2, 0.0])
    expected = [[0, 1], [-0.5, -1], [-1, np.exp(-2)], [-1, -0.5], [-1, 0]]
    close(coordinate_lstm.log_and_sign(g), expected)


def test_rnnprop_reads_what_adam_would_step_by():
    # ELU leaves what is positive as it is; |m| <= 5 sqrt(v) for this decay.
    dense = {"w0": jnp.eye(2), "b0": jnp.full(2, 9.0)}
    decay = coordinate_lstm.DECAY
    adam, plain = optax.scale_by_adam(decay, decay), optax.scale_by_adam(0.0, decay)
    states, m, v = (adam.init(jnp.zeros(3)), plain.init(jnp.zeros(3))), jnp.zeros(3), jnp.zeros(3)
    for t in range(1, 4):
        g = draw(t, 3)
        m, v = decay * m + (1 - decay) * g, decay * v + (1 - decay) * g * g
        (ratio, first), (unit, second) = adam.update(g, states[0]), plain.update(g, states[1])
        states = (first, second)
        read = coordinate_lstm._relative_to_rms(dense, jnp.int32(t), g, m, v)
        close(read - 9.0, jnp.stack([unit, ratio], axis=-1), atol=1e-5)  # next to 9


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_rnnprop_does_not_see_the_scale_of_the_gradient(factor):
    optimizer = families.build("coordinate_lstm", rule="rnnprop")
    tx = optimizer.bind(optimizer.init(KEY))

    def third_update(scale):
        state, update = tx.init(jnp.zeros(4)), jax.jit(tx.update)
        for t in range(3):
            updates, state = update(scale * draw(t, 4), state, jnp.zeros(4))
        return updates

    ours = third_update(1.0)
    close(third_update(factor), ours, rtol=1e-4)  # eps is 1e-8 of a root mean square
    assert 0 < np.max(np.abs(ours)) < 0.1


MATRIX, TARGET, L1 = draw(5, 6, 10) / 8, draw(6, 6), 0.05
smooth = lambda x: 0.5 * jnp.sum((MATRIX @ x - TARGET) ** 2)


def constant_heads(optimizer, *values):
    """A theta whose heads output ``values`` whatever the LSTM's state."""
    theta = optimizer.init(KEY)
    return theta | {"heads": theta["heads"] | {"w1": jnp.zeros((20, len(values))), "b1": jnp.array(values)}}


def test_constant_coefficients_make_ista_and_fista():
    optimizer = families.build("l2o_pa", norm="identity", l1=L1, step_size=0.5)

    @jax.jit
    def learned(y, state, momentum):
        tx = optimizer.bind(constant_heads(optimizer, 1.0, momentum))
        updates, state = tx.update(jax.grad(smooth)(y), state, y)
        return y + updates, state

    for accelerated in (False, True):
        x = y = ours = draw(7, 10)
        state, t = optimizer.bind(optimizer.init(KEY)).init(ours), 1.0
        for _ in range(30):
            t_new = (1 + np.sqrt(1 + 4 * t * t)) / 2
            momentum = (t - 1) / t_new if accelerated else 0.0
            inside = y - 0.5 * jax.grad(smooth)(y)
            x_new = jnp.sign(inside) * jnp.maximum(jnp.abs(inside) - 0.5 * L1, 0.0)
            y, x, t = x_new + momentum * (x_new - x), x_new, t_new
            ours, state = learned(ours, state, momentum)
        close(ours, y)
        assert 0 < np.sum(np.asarray(x) == 0.0) < 10  # the kink is at work


def test_all_five_coefficients_stand_where_the_paper_has_them():
    optimizer = families.build("l2o_pa", heads="b2,p,b,a,b1", norm="softplus", scale_p=0.5, scale_a=0.3, l1=L1)
    heads = {"b2": -0.01, "p": 0.4, "b": 0.2, "a": -0.3, "b1": 0.02}
    tx = optimizer.bind(constant_heads(optimizer, *heads.values()))
    softplus = lambda name: np.log1p(np.exp(heads[name]))
    p, a, b = 0.5 * softplus("p") * 0.9999, 0.3 * softplus("a"), softplus("b")
    x = y = ours = draw(7, 10)
    state, update = tx.init(ours), jax.jit(lambda g, s, y: tx.update(g, s, y, value_fn=smooth))
    for _ in range(3):
        inside = b * (y - p * jax.grad(smooth)(y)) + (1 - b) * (x - p * jax.grad(smooth)(x)) + heads["b1"]
        x_new = jnp.sign(inside) * jnp.maximum(jnp.abs(inside) - p * L1, 0.0)
        y, x = x_new + a * (x_new - x) + heads["b2"], x_new
        updates, state = update(jax.grad(smooth)(ours), state, ours)
        ours = ours + updates
    close(ours, y)


def test_meta_training_begins_with_a_plain_step_and_full_momentum():
    optimizer = families.build("l2o_pa", step_size=0.25)
    tx = optimizer.bind(optimizer.init(KEY))
    g, y = draw(1, 4), draw(2, 4)
    first, state = tx.update(g, tx.init(y), y)
    close(first, -0.5 * g)  # x' - y = -s g, and as much again
    second, _ = tx.update(g, state, y + first)
    close(second, -0.25 * g + (-0.25 * g - 0.25 * g))  # from x = y - lead: x' - x = lead - s g


def test_head_b_asks_for_the_function_it_needs():
    optimizer = families.build("l2o_pa", heads="p,a,b")
    tx = optimizer.bind(optimizer.init(KEY))
    with pytest.raises(ValueError, match=r"call update\(grads, state, params, value_fn=f\)"):
        tx.update(jnp.ones(3), tx.init(jnp.ones(3)), jnp.ones(3))


def test_meta_gradients_do_not_flow_through_the_input_of_the_lstm():
    optimizer = families.build("l2o_pa")
    theta = jax.tree.map(lambda x: x + 0.5 * draw(x.size, *x.shape), optimizer.init(KEY))
    tx = optimizer.bind(theta)
    update = lambda g: tx.update(g, tx.init(g), jnp.zeros(6))[0]
    g = draw(1, 6)
    u, slope = jax.jvp(update, (g,), (jnp.ones(6),))
    # From y = x = 0 the update is -(1 + a) p s g: with p and a held, its derivative is the update over g.
    close(slope, u / g)
    assert np.max(np.abs((update(1.5 * g) - 1.5 * u) / u)) > 0.01  # and they are not constants


@pytest.mark.parametrize(
    "family, settings", [("coordinate_lstm", {}), ("coordinate_lstm", {"rule": "rnnprop"}), ("l2o_pa", {})]
)
def test_every_coordinate_of_every_tensor_has_a_state_of_its_own(family, settings):
    optimizer = families.build(family, **settings)
    tx = optimizer.bind(jax.tree.map(lambda x: x + 0.1, optimizer.init(KEY)))
    tree = lambda v: {"a": [v[:6].reshape(2, 3), v[6]], "b": (v[7:].reshape(1, 2, 2),)}
    update = jax.jit(tx.update)
    params, g = draw(1, 11), draw(2, 11)
    flat, states = params, [tx.init(params), tx.init(tree(params))]
    nested = tree(params)
    for t in range(2):
        u, states[0] = update((t + 1) * g, states[0], flat)
        v, states[1] = update(tree((t + 1) * g), states[1], nested)
        flat, nested = flat + u, jax.tree.map(jnp.add, nested, v)
    jax.tree.map(close, nested, tree(flat))


@pytest.mark.parametrize(
    "family, settings, extra",
    [
        ("coordinate_lstm", {}, {}),
        ("coordinate_lstm", {"rule": "rnnprop"}, {}),
        ("l2o_pa", {"l1": 0.01}, {}),
        ("open", {"noisy": ""}, {"key": KEY, "activations": {"x": jnp.arange(1.0, 7.0)}}),
    ],
)
def test_a_tensor_in_tiles_has_the_state_and_the_meta_gradient_of_the_whole(monkeypatch, family, settings, extra):
    optimizer = families.build(family, **settings)
    theta = jax.tree.map(lambda x: x + 0.1 * draw(x.size, *x.shape), optimizer.init(KEY))

    def two_steps(theta):
        tx = optimizer.bind(theta, num_steps=4)
        params = {"x": draw(1, 16, 6)}
        state = tx.init(params)
        for t in range(2):
            updates, state = tx.update({"x": draw(2 + t, 16, 6)}, state, params, **extra)
            params = optax.apply_updates(params, updates)
        return jnp.sum(params["x"] ** 2), (params, state)

    run = lambda: jax.jit(jax.value_and_grad(lambda theta: two_steps(theta), has_aux=True))
    whole = run()(theta)
    monkeypatch.setattr(tiling, "MAX_TILE_ON_CPU", 24)
    assert "scan" in str(jax.make_jaxpr(lambda theta: two_steps(theta))(theta))
    # Sums in another order; the derivative of a large sum holds the rounding of its terms.
    jax.tree.map(lambda a, b: close(a, b, rtol=1e-4, atol=1e-5), run()(theta), whole)


def agent():
    layer = lambda seed, num_in, num_out: {"kernel": draw(seed, num_in, num_out), "bias": draw(seed + 1, num_out)}
    return {
        "actor": {"Dense_0": layer(0, 3, 4), "Dense_1": layer(2, 4, 2)},
        "critic": {"Dense_0": layer(4, 3, 4), "Dense_1": layer(6, 4, 1)},
    }


@pytest.fixture(scope="module")
def open_update():
    optimizer = families.build("open", num_minibatches=2, num_epochs=2)
    tx = optimizer.bind(optimizer.init(KEY), num_steps=8)
    params = agent()
    return jax.jit(lambda **extra: tx.update(jax.tree.map(jnp.sin, params), tx.init(params), params, **extra)[0])


def test_open_without_activations_takes_all_neurons_for_equally_active(open_update):
    width = {"Dense_0": 4, "Dense_1": 2}
    layers = {"actor": width, "critic": width | {"Dense_1": 1}}
    equal = jax.tree.map(lambda n: jnp.full(n, 0.3), layers)
    jax.tree.map(lambda a, b: close(a, b, atol=1e-9), open_update(activations=equal), open_update())
    unequal = jax.tree.map(lambda n: jnp.arange(1.0, n + 1), layers)
    assert optax.tree.norm(optax.tree.sub(open_update(activations=unequal), open_update())) > 1e-6


def test_open_adds_noise_to_the_actor_and_takes_the_mean_from_all(open_update):
    quiet, noisy = open_update(), open_update(key=KEY)
    change = optax.tree.sub(noisy, quiet)
    critic = np.concatenate([x.ravel() for x in jax.tree.leaves(change["critic"])])
    actor = np.concatenate([x.ravel() for x in jax.tree.leaves(change["actor"])])
    np.testing.assert_allclose(critic, critic[0], atol=1e-9)  # the mean alone
    assert np.std(actor) > 1e-5
    for updates in (quiet, noisy):
        assert abs(optax.tree.sum(updates)) < 1e-8 * optax.tree.size(updates)  # a sum of steps of about 1e-3


def test_open_has_no_noise_where_no_parameter_is_called_so():
    """Tasks pass a key whatever their parameters are called; noise that was made for them is another matter."""
    optimizer, params = families.build("open"), {"w0": jnp.ones((2, 3)), "b0": jnp.ones(3)}
    tx = optimizer.bind(optimizer.init(KEY), num_steps=8)
    update = lambda **extra: tx.update(params, tx.init(params), params, **extra)[0]
    jax.tree.map(np.testing.assert_array_equal, update(key=KEY), update())
    with pytest.raises(ValueError, match="no parameter is under 'actor' to be given noise .* set noisy"):
        update(noise=params)


def test_open_progress_counts_updates_and_epochs_and_survives_one_of_each():
    config = open.Config(num_minibatches=3, num_epochs=2)
    progress = [open._progress(jnp.int32(t), 18, config) for t in range(18)]
    np.testing.assert_allclose([float(u) for u, _ in progress], np.repeat([0, 0.5, 1], 6))
    np.testing.assert_allclose([float(e) for _, e in progress], np.tile(np.repeat([0, 1], 3), 3))
    assert [float(x) for x in open._progress(jnp.int32(0), 1, open.Config())] == [0.0, 0.0]


def test_open_counts_layers_in_the_order_of_their_numbers():
    depths = open._depths({"net": {f"Dense_{i}": {"kernel": 0.0} for i in range(12)}, "one": {"kernel": 0.0}})
    np.testing.assert_allclose([depths["net"][f"Dense_{i}"]["kernel"] for i in range(12)], np.arange(12) / 11)
    assert depths["one"]["kernel"] == 0.0


def test_open_counts_layers_by_the_numbers_in_a_flat_dict():
    flat = {f"{name}{i}": 0.0 for i in range(12) for name in "wb"}
    for depths in (open._depths(flat), open._depths({"actor": flat, "critic": {"w0": 0.0, "w1": 0.0}})["actor"]):
        np.testing.assert_allclose([depths[f"w{i}"] for i in range(12)], np.arange(12) / 11)
        np.testing.assert_allclose([depths[f"b{i}"] for i in range(12)], np.arange(12) / 11)
    task = ImageMLP(depth=2)
    depths = open._depths(jax.eval_shape(lambda key: task.init(task.sample(key), key), KEY))
    assert depths == {"w0": 0.0, "b0": 0.0, "w1": 0.5, "b1": 0.5, "w2": 1.0, "b2": 1.0}


@pytest.mark.parametrize(
    "params, expected",
    [
        ([[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]]),  # indices of a list number no layers
        ({"Dense_0": {"w1": 0.0}, "Dense_1": {"w1": 0.0}}, {"Dense_0": {"w1": 0.0}, "Dense_1": {"w1": 1.0}}),
        ({"w0": 0.0, "w1": 0.0, "scale": 0.0}, {"w0": 0.0, "w1": 1.0, "scale": 0.0}),
        (0.0, 0.0),
    ],
)
def test_open_depths_elsewhere_follow_the_tree(params, expected):
    assert open._depths(params) == expected


@pytest.mark.parametrize(
    "activations, message",
    [
        ({"actor": {"Dense_0": jnp.ones(4)}}, "one array for each layer"),
        ({net: {"Dense_0": jnp.ones(4), "Dense_1": jnp.ones(3)} for net in agent()}, r"Dense_1.*have shape \(3,\)"),
    ],
)
def test_activations_that_do_not_fit_are_named(open_update, activations, message):
    with pytest.raises(ValueError, match=message):
        open_update(activations=activations)


def test_open_needs_the_length_of_training():
    optimizer = families.build("open")
    with pytest.raises(ValueError, match="pass num_steps="):
        optimizer.bind(optimizer.init(KEY))


@pytest.mark.parametrize(
    "family, settings, message",
    [
        ("coordinate_lstm", {"rule": "adam"}, "one of l2o_dm, rnnprop, got 'adam'"),
        ("coordinate_lstm", {"layers": 0}, "at least 1, got 20 and 0"),
        ("l2o_pa", {"heads": "p,q"}, "of p, a, b, b1, b2, each at most once, got 'p,q'"),
        ("l2o_pa", {"heads": "p,p"}, "each at most once, got 'p,p'"),
        ("l2o_pa", {"norm": "tanh"}, "one of identity, exp, softplus, double_sigmoid, got 'tanh'"),
        ("l2o_pa", {"l1": -1.0}, "l1 >= 0, got 0.9999 and -1.0"),
        ("open", {"num_epochs": 0}, "num_epochs must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_named(family, settings, message):
    with pytest.raises(ValueError, match=message):
        families.build(family, **settings)


def test_the_references_defect_sends_biases_through_the_norm():
    """Heads start at zero, which the norm makes one: b1 = 1 in place of 0."""
    params, grads = {"w": jnp.array([1.0, -2.0])}, {"w": jnp.array([0.5, 0.3])}

    def first(**settings):
        optimizer = families.build("l2o_pa", heads="b1", **settings)
        tx = optimizer.bind(optimizer.init(jax.random.key(0)))
        return tx.update(grads, tx.init(params), params)[0]["w"]

    np.testing.assert_allclose(first(bugged_biases=True), first() + 1.0, rtol=1e-6)
