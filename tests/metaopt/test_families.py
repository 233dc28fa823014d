"""What is particular to one family."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import optimizers
from metaopt.errors import UserError
from metaopt.optimizers import accumulators, features

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
    optimizer = optimizers.build("hand", rule=rule, learning_rate=0.01)
    ours = trajectory(optimizer.bind(optimizer.init(jax.random.key(0))))
    # exp(log(x)) costs a few units in the last place.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), ours, trajectory(expected))


def test_hand_schedule_interpolates_in_log_space():
    optimizer = optimizers.build("hand", rule="sgd", learning_rate=0.1, schedule_knots=3)
    theta = optimizer.init(jax.random.key(0)) | {"schedule": jnp.array([0.0, 1.0, -1.0])}
    tx = optimizer.bind(theta, num_steps=4)
    state, rates = tx.init(PARAMS), []
    for _ in range(6):
        updates, state = tx.update(GRADS[0], state, PARAMS)
        rates.append(float(-updates["b"][0] / GRADS[0]["b"][0]))
    np.testing.assert_allclose(np.log(np.array(rates) / 0.1), [0.0, 0.5, 1.0, 0.0, -1.0, -1.0], atol=1e-5)


def test_hand_schedule_needs_num_steps():
    optimizer = optimizers.build("hand", schedule_knots=2)
    with pytest.raises(ValueError, match="pass num_steps="):
        optimizer.bind(optimizer.init(jax.random.key(0)))


def test_unrolled_and_stacked_networks_agree_and_so_do_their_derivatives():
    weights = features.init_network(jax.random.key(1), (6, 4, 4, 2))
    shape = (5, 3)
    channels = [jax.random.normal(jax.random.key(i), s) for i, s in enumerate([shape] * 3 + [(5, 1), (1, 3), shape])]
    total = lambda f: lambda w, c: sum(jnp.sum(out**2) for out in f(w, c, shape))
    for order in (lambda f: f, lambda f: jax.grad(f, argnums=(0, 1))):
        ours = jax.jit(order(total(features._unrolled)))(weights, channels)
        theirs = jax.jit(order(total(features._stacked)))(weights, channels)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)


def test_relative_steps_follow_the_scale_of_a_tensor():
    optimizer = optimizers.build("small_fc", relative=True)
    tx = optimizer.bind(optimizer.init(jax.random.key(0)))
    first = lambda scale: tx.update({"w": GRADS[0]["w"]}, tx.init({"w": PARAMS["w"]}), {"w": scale * PARAMS["w"]})[0][
        "w"
    ]
    # Features are normalised, so only the unit of the step changes; 1e-5 in the normaliser.
    np.testing.assert_allclose(first(10.0), 10.0 * first(1.0), rtol=1e-3)


def test_a_schedule_of_zeros_changes_nothing():
    plain, scheduled = optimizers.build("small_fc"), optimizers.build("small_fc", schedule=True)
    key = jax.random.key(0)
    ours = trajectory(scheduled.bind(scheduled.init(key), num_steps=9))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, trajectory(plain.bind(plain.init(key)))
    )


@pytest.mark.parametrize(
    "shape, axes", [((5, 5), (0, 1)), ((4, 3), (1, 0)), ((3, 3, 2, 4), (1, 3)), ((7, 7, 7), (1, 2))]
)
def test_factored_axes_break_ties_towards_the_end(shape, axes):
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
    ],
)
def test_bad_settings_are_named(family, settings, message):
    with pytest.raises(ValueError, match=message):
        optimizers.build(family, **settings)


def test_errors_of_settings_are_user_errors():
    with pytest.raises(UserError):
        optimizers.build("nothing")
