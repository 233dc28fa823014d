"""What is particular to one family."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import families
from metaopt.errors import UserError
from metaopt.nn import mlp
from metaopt.optimizers.common import accumulators, tiling

PARAMS = {"w": jax.random.normal(jax.random.key(0), (5, 3)), "b": jnp.zeros(3)}
GRADS = [jax.tree.map(lambda p, k=k: jax.random.normal(jax.random.key(k), p.shape), PARAMS) for k in range(4)]


def trajectory(tx, num_steps=4):
    params, state, update = PARAMS, tx.init(PARAMS), jax.jit(tx.update)
    for grads in GRADS[:num_steps]:
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize(
    "rule, expected",
    [
        ("sgd", optax.sgd(0.01)),
        ("momentum", optax.sgd(0.01, momentum=0.9)),
        ("adam", optax.adam(0.01)),
        ("adamw", optax.adamw(0.01, weight_decay=1e-4)),
    ],
)
def test_hand_is_the_optax_optimizer_it_names(rule, expected):
    optimizer = families.build("hand", rule=rule, learning_rate=0.01)
    ours = trajectory(optimizer.bind(optimizer.init(jax.random.key(0))))
    # exp(log(x)) costs a few units in the last place.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), ours, trajectory(expected))


def rates_of_sgd(num_steps, entries, **settings):
    """The learning rates of six steps, seen in the updates."""
    optimizer = families.build("hand", rule="sgd", learning_rate=0.1, **settings)
    tx = optimizer.bind(optimizer.init(jax.random.key(0)) | entries, num_steps=num_steps)
    state, rates = tx.init(PARAMS), []
    for _ in range(6):
        updates, state = tx.update(GRADS[0], state, PARAMS)
        rates.append(float(-updates["b"][0] / GRADS[0]["b"][0]))
    return np.array(rates)


def test_hand_schedule_interpolates_in_log_space():
    rates = rates_of_sgd(4, {"schedule": jnp.array([0.0, 1.0, -1.0])}, schedule_knots=3)
    np.testing.assert_allclose(np.log(rates / 0.1), [0.0, 0.5, 1.0, 0.0, -1.0, -1.0], atol=1e-5)


def test_hand_decays_by_a_learned_power_alone_or_on_top_of_a_schedule():
    fallen = (1 + np.arange(6) / 2) ** -1.5
    power, schedule = {"decay": jnp.float32(1.5)}, {"schedule": jnp.array([0.0, 1.0])}
    # Logarithms in float32: a few units in the last place.
    np.testing.assert_allclose(rates_of_sgd(None, power, decay_steps=2), 0.1 * fallen, rtol=2e-6)
    both = rates_of_sgd(10, power | schedule, decay_steps=2, schedule_knots=2)
    np.testing.assert_allclose(both, 0.1 * fallen * np.exp(np.arange(6) / 10), rtol=2e-6)
    np.testing.assert_allclose(rates_of_sgd(None, {}, decay_steps=2), 0.1, rtol=1e-6)  # it starts without


def different(optimizer):
    """Another theta for every tensor."""
    return jax.tree.map(lambda x: x + 0.1 * jnp.arange(x.size).reshape(x.shape), optimizer.init(jax.random.key(0)))


@pytest.mark.parametrize("settings", [{"rule": "momentum", "decay_steps": 2}, {"rule": "adamw", "schedule_knots": 2}])
def test_hand_of_each_tensor_is_the_scalar_optimizer_on_that_tensor_alone(settings):
    scalar, of_each = families.build("hand", **settings), families.build("hand", num_tensors=2, **settings)
    theta = different(of_each)
    together = trajectory(of_each.bind(theta, num_steps=9))
    for i, name in enumerate(sorted(PARAMS)):
        tx = scalar.bind(jax.tree.map(lambda x, i=i: x[i], theta), num_steps=9)
        params, state, update = PARAMS[name], tx.init(PARAMS[name]), jax.jit(tx.update)
        for grads in GRADS:
            updates, state = update(grads[name], state, params)
            params = optax.apply_updates(params, updates)
        np.testing.assert_array_equal(params, together[name])


@pytest.mark.parametrize("rule", ["sgd", "momentum", "adam", "adamw"])
def test_hand_with_equal_tensors_is_the_scalar_optimizer(rule):
    scalar, of_each = (families.build("hand", rule=rule, learning_rate=0.01, num_tensors=n) for n in (0, 2))
    ours, theirs = (trajectory(o.bind(o.init(jax.random.key(0)))) for o in (of_each, scalar))
    # XLA divides by Adam's bias correction one way for one array, another for several: a unit in the last place.
    same = np.testing.assert_array_equal if rule in ("sgd", "momentum") else np.testing.assert_array_almost_equal_nulp
    jax.tree.map(lambda a, b: same(np.asarray(a), np.asarray(b)), ours, theirs)


def test_a_tensor_without_a_learning_rate_stays():
    optimizer = families.build("hand", rule="adamw", num_tensors=2)
    theta = optimizer.init(jax.random.key(0))
    theta["log_learning_rate"] = theta["log_learning_rate"].at[1].set(-jnp.inf)
    after = trajectory(optimizer.bind(theta))
    np.testing.assert_array_equal(after["w"], PARAMS["w"])
    assert np.all(after["b"] != PARAMS["b"])


def test_the_number_of_tensors_is_checked():
    optimizer = families.build("hand", num_tensors=3)
    with pytest.raises(ValueError, match="for 3 tensors and the parameters are 2: set num_tensors=2, or 0 to share"):
        optimizer.bind(optimizer.init(jax.random.key(0))).init(PARAMS)


def test_what_is_fixed_is_not_learned_and_stays_where_it_starts():
    settings = {"rule": "momentum", "learning_rate": 0.01, "momentum": 0.7, "num_tensors": 2}
    fixed, free = (
        families.build("hand", fixed="log_one_minus_momentum", **settings),
        families.build("hand", **settings),
    )
    ours, theirs = fixed.init(jax.random.key(0)), free.init(jax.random.key(0))
    assert set(theirs) - set(ours) == {"log_one_minus_momentum"}
    jax.tree.map(np.testing.assert_array_equal, trajectory(fixed.bind(ours)), trajectory(free.bind(theirs)))


def test_hand_schedule_needs_num_steps():
    optimizer = families.build("hand", schedule_knots=2)
    with pytest.raises(ValueError, match="pass num_steps="):
        optimizer.bind(optimizer.init(jax.random.key(0)))


def test_unrolled_and_stacked_networks_agree_and_so_do_their_derivatives():
    weights = mlp.init(jax.random.key(1), (6, 4, 4, 2))
    shape = (5, 3)
    channels = [jax.random.normal(jax.random.key(i), s) for i, s in enumerate([shape] * 3 + [(5, 1), (1, 3), shape])]
    total = lambda f: lambda w, c: sum(jnp.sum(out**2) for out in f(w, c, shape))
    for order in (lambda f: f, lambda f: jax.grad(f, argnums=(0, 1))):
        ours = jax.jit(order(total(mlp._unrolled)))(weights, channels)
        theirs = jax.jit(order(total(mlp._stacked)))(weights, channels)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)


@pytest.mark.parametrize("shape", [(7, 5), (3, 3, 4, 6), (41,), (40, 1)])
def test_a_tensor_in_tiles_gets_the_update_of_the_whole(monkeypatch, shape):
    """So do derivatives, of one of them: they take long to compile."""
    optimizer = families.build("mlp", hidden=4)
    theta = optimizer.init(jax.random.key(0))
    params, grads = ({"x": jax.random.normal(jax.random.key(k), shape)} for k in (1, 2))

    def update(theta):
        tx = optimizer.bind(theta)
        return tx.update(grads, tx.init(params), params)[0]["x"]

    total = lambda theta: jnp.sum(update(theta) ** 2)
    both = lambda theta: (update(theta), jax.grad(total)(theta) if shape == (7, 5) else ())
    whole = jax.jit(lambda theta: both(theta))(theta)
    monkeypatch.setattr(tiling, "MAX_TILE_ON_CPU", 12)  # divides no shape evenly
    assert "scan" in str(jax.make_jaxpr(lambda theta: update(theta))(theta))
    cut = jax.jit(lambda theta: both(theta))(theta)
    # Another order of summation.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-9), cut, whole)


def test_relative_steps_follow_the_scale_of_a_tensor():
    optimizer = families.build("small_fc", relative=True)
    tx = optimizer.bind(optimizer.init(jax.random.key(0)))
    first = lambda scale: tx.update({"w": GRADS[0]["w"]}, tx.init({"w": PARAMS["w"]}), {"w": scale * PARAMS["w"]})[0][
        "w"
    ]
    # Features are normalized, so only the unit of the step changes; 1e-5 in the normalizer.
    np.testing.assert_allclose(first(10.0), 10.0 * first(1.0), rtol=1e-3)


def test_a_schedule_of_zeros_changes_nothing():
    plain, scheduled = families.build("small_fc"), families.build("small_fc", schedule=True)
    key = jax.random.key(0)
    ours = trajectory(scheduled.bind(scheduled.init(key), num_steps=9))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, trajectory(plain.bind(plain.init(key)))
    )


@pytest.mark.parametrize(
    "shape, axes", [((5, 5), (0, 1)), ((4, 3), (1, 0)), ((3, 3, 2, 4), (1, 3)), ((7, 7, 7), (1, 2))]
)
def test_factored_axes_break_ties_toward_the_end(shape, axes):
    assert accumulators.factored_axes(shape) == axes


def test_the_factored_moment_of_a_rank_one_square_is_exact():
    row, col = jnp.array([[1.0], [2.0], [3.0]]), jnp.array([[2.0, 5.0]])
    grad = row * col
    moment = accumulators.update_factored(jnp.float32(0.0), accumulators.init_factored(grad), grad)
    r, c = accumulators.preconditioners(moment, grad.shape)
    np.testing.assert_allclose(grad * r * c, jnp.ones((3, 2)), rtol=1e-5)


@pytest.mark.parametrize(
    "family, settings, message",
    [
        ("smal_fc", {}, "did you mean 'small_fc'"),
        ("small_fc", {"hiden": 4}, "did you mean 'hidden'"),
        ("small_fc", {"hidden": 4.5}, "hidden takes int, got 4.5"),
        ("small_fc", {"hidden": 0}, "hidden must be at least 1, got 0"),
        ("mlp", {"layers": 0}, "must be at least 1"),
        ("hand", {"rule": "lion"}, "one of sgd, momentum, adam, adamw, got 'lion'"),
        ("hand", {"schedule_knots": 1}, "0 or at least 2"),
        ("hand", {"decay_steps": -1}, "decay_steps must not be negative, got -1"),
        ("hand", {"num_tensors": -2}, "num_tensors must not be negative, got -2"),
        ("hand", {"fixed": "log_rate"}, "unknown entry of theta 'log_rate'.*known: log_eps, log_learning_rate"),
    ],
)
def test_bad_settings_are_named(family, settings, message):
    with pytest.raises(ValueError, match=message):
        families.build(family, **settings)


def test_errors_of_settings_are_user_errors():
    with pytest.raises(UserError):
        families.build("nothing")
