"""What every learned optimizer family must satisfy.

A family joins by its line in FAMILIES; settings worth testing beside the defaults are
listed in VARIANTS. Where ``num_tensors`` is a setting it is that of the tensors at hand.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from metaopt import families

VARIANTS = [
    ("hand", {"rule": "adamw", "schedule_knots": 3}),
    ("hand", {"rule": "adamw", "num_tensors": 3}),
    ("hand", {"rule": "momentum"}),
    ("hand", {"rule": "momentum", "decay_steps": 2, "fixed": "log_one_minus_momentum"}),
    ("coordinate_lstm", {"rule": "rnnprop"}),
    ("l2o_pa", {"heads": "p,a,b1,b2", "norm": "softplus", "l1": 0.1}),
    ("small_fc", {"hidden": 8, "schedule": True, "relative": True}),
]
OPTIMIZERS = sorted(name for name, entry in families.FAMILIES.items() if entry.kind == "optimizer")
CASES = [(family, {}) for family in OPTIMIZERS] + VARIANTS
NUM_STEPS = 10


@functools.cache
def built(index: int, num_tensors: int = 3):
    family, settings = CASES[index]
    if "num_tensors" in settings:
        settings = settings | {"num_tensors": num_tensors}
    optimizer = families.build(family, **settings)
    return optimizer, optimizer.init(jax.random.key(0))


@pytest.fixture(params=range(len(CASES)), ids=lambda i: "-".join([CASES[i][0], *map(str, CASES[i][1].values())]))
def index(request):
    return request.param


@pytest.fixture
def case(index):
    return built(index)


@pytest.fixture
def tx(index):
    return bound(index)


def bound(index: int, num_tensors: int = 3):
    optimizer, theta = built(index, num_tensors)
    return optimizer.bind(theta, num_steps=NUM_STEPS)


def problem(dtype=jnp.float32):
    draw = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape).astype(dtype)
    params = {"w": draw(0, 4, 3), "b": jnp.zeros((3,), dtype), "s": jnp.ones((), dtype)}
    return params, {"w": draw(1, 4, 3), "b": draw(2, 3), "s": draw(3)}


VALUE = jnp.float32(1.5)


def close(a, b, rtol=1e-5, atol=1e-7):
    """Float32 with another order of summation: a few units in the last place."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_updates_have_the_dtype_of_params_and_state_is_float32(tx, dtype):
    params, grads = problem(dtype)
    updates, state = jax.jit(tx.update)(grads, tx.init(params), params, value=VALUE)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), updates) == jax.tree.map(lambda x: (x.shape, x.dtype), params)
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert all(x.dtype == jnp.float32 for x in floats)
    assert all(np.isfinite(np.asarray(u, np.float32)).all() for u in jax.tree.leaves(updates))


def test_bfloat16_gives_the_rounded_float32_update(tx):
    params, grads = problem(jnp.bfloat16)
    wide = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params, value=VALUE)
    exact, _ = jax.jit(tx.update)(wide(grads), tx.init(wide(params)), wide(params), value=VALUE)
    close(wide(updates), exact, rtol=2**-8, atol=1e-9)  # bfloat16 keeps 8 bits


def test_jit_matches_eager(tx):
    params, grads = problem()
    args = (grads, tx.init(params), params)
    close(tx.update(*args, value=VALUE), jax.jit(tx.update)(*args, value=VALUE))


def test_state_goes_through_a_scan_and_compiles_once_when_donated(tx):
    params, grads = problem()

    def step(params, state):
        updates, state = tx.update(grads, state, params, value=VALUE)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(step, donate_argnums=(0, 1))  # fails if two leaves share a buffer
    looped = (params, tx.init(params))
    for _ in range(3):
        looped = jitted(*jax.tree.map(jnp.copy, looped))
    assert jitted._cache_size() == 1
    scanned, _ = jax.lax.scan(lambda c, _: (step(*c), None), (params, tx.init(params)), length=3)
    close(looped, scanned)


def test_vmap_over_theta_matches_a_loop(case):
    optimizer, _ = case
    params, grads = problem()
    thetas = jax.vmap(optimizer.init)(jax.random.split(jax.random.key(0), 3))

    def first_update(theta):
        tx = optimizer.bind(theta, num_steps=NUM_STEPS)
        return tx.update(grads, tx.init(params), params, value=VALUE)[0]

    batched = jax.jit(jax.vmap(first_update))(thetas)
    loop = jax.jit(first_update)
    for i in range(3):
        close(jax.tree.map(lambda b, i=i: b[i], batched), loop(jax.tree.map(lambda t, i=i: t[i], thetas)))


def test_gradient_with_respect_to_theta_is_the_finite_difference(index):
    optimizer, theta = built(index, num_tensors=1)
    params, grads = [{"w": tree["w"]} for tree in problem()]  # one tensor: reverse mode compiles slowly

    def total(theta):
        tx = optimizer.bind(theta, num_steps=NUM_STEPS)
        return 1e3 * jnp.sum(tx.update(grads, tx.init(params), params, value=VALUE)[0]["w"] ** 2)

    leaves, tree = jax.tree.flatten(theta)
    direction = tree.unflatten([jax.random.normal(jax.random.key(i), x.shape) for i, x in enumerate(leaves)])
    along = lambda h: jax.tree.map(lambda t, d: t + h * d, theta, direction)
    slope = optax.tree.vdot(jax.jit(jax.grad(total))(theta), direction)
    value = jax.jit(total)
    # Rounding (1e-7 / h) wants a large h; curvature and kinks, in a direction as long as theta is large, a small one.
    differences = [(value(along(h)) - value(along(-h))) / (2 * h) for h in (1e-3, 1e-4)]
    nearest = min(differences, key=lambda difference: abs(difference - slope))
    np.testing.assert_allclose(slope, nearest, rtol=0.03, atol=1e-3 * float(value(theta)))


def test_a_parameter_without_gradients_leaves_the_meta_gradient_finite(index):
    """Units that are switched off have a gradient of zero for ever: their second moments stay at zero."""
    optimizer, theta = built(index, num_tensors=1)
    params, grads = {"b": jnp.array([0.5, 0.0, 1.0])}, {"b": jnp.array([0.3, 0.0, -0.1])}

    def total(theta):
        tx, p = optimizer.bind(theta, num_steps=NUM_STEPS), params
        state = tx.init(p)
        for _ in range(2):
            updates, state = tx.update(grads, state, p, value=VALUE)
            p = optax.apply_updates(p, updates)
        return jnp.sum(p["b"] ** 2)

    slopes = jax.jit(jax.grad(total))(theta)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))


def test_num_steps_may_be_traced(case):
    optimizer, theta = case
    params, grads = problem()

    def first_update(num_steps):
        tx = optimizer.bind(theta, num_steps=num_steps)
        return tx.update(grads, tx.init(params), params, value=VALUE)[0]

    close(jax.jit(first_update)(jnp.int32(NUM_STEPS)), jax.jit(lambda: first_update(NUM_STEPS))())


def test_init_looks_at_shapes_only(tx):
    params, _ = problem()
    shapes = jax.eval_shape(lambda: params)
    abstract = jax.eval_shape(tx.init, shapes)
    concrete = tx.init(params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), abstract) == jax.tree.map(lambda x: (x.shape, x.dtype), concrete)
    other = tx.init(jax.tree.map(lambda p: p + 7, params))
    jax.tree.map(np.testing.assert_array_equal, concrete, other)


def wrappers(tx):
    mask = {"w": True, "b": False, "s": True}
    return {
        "chain": optax.chain(optax.clip_by_global_norm(1.0), tx, optax.add_decayed_weights(1e-4)),
        "masked": optax.masked(tx, mask),
        "multi_transform": optax.multi_transform({"a": tx, "b": optax.sgd(0.1)}, {"w": "a", "b": "b", "s": "a"}),
        "MultiSteps": optax.MultiSteps(tx, every_k_schedule=2).gradient_transformation(),
        "inject_hyperparams": optax.inject_hyperparams(lambda scale: optax.chain(tx, optax.scale(scale)))(scale=0.5),
    }


@pytest.mark.parametrize("name", ["chain", "masked", "multi_transform", "MultiSteps", "inject_hyperparams"])
def test_composes_with_optax(index, name):
    params, grads = problem()
    tx = bound(index)
    plain, _ = jax.jit(tx.update)(grads, tx.init(params), params, value=VALUE)
    wrapped = wrappers(bound(index, num_tensors=2) if name in ("masked", "multi_transform") else tx)[name]
    update = jax.jit(wrapped.update)
    updates, state = update(grads, wrapped.init(params), params, value=VALUE)
    if name == "MultiSteps":  # the first of two calls only gathers
        assert optax.tree.norm(updates) == 0
        updates, state = update(grads, state, params, value=VALUE)
    if name in ("masked", "multi_transform"):
        # A per-tensor rule sees the tensors it is given; the others are somebody else's.
        expected = {"b": grads["b"] if name == "masked" else -0.1 * grads["b"]}
        close({"b": updates["b"]}, expected)
    if name == "inject_hyperparams":
        close(updates, jax.tree.map(lambda u: 0.5 * u, plain))
    if name == "MultiSteps":
        close(updates, plain)
    assert optax.tree.norm(updates) > 0


def test_works_in_a_flax_train_state(tx):
    params, grads = problem()
    state = TrainState.create(apply_fn=lambda p: p, params=params, tx=tx)
    try:
        after = state.apply_gradients(grads=grads)
    except ValueError as error:  # a TrainState cannot pass the loss on: the error says how to go without
        assert "needs the current loss: call update(grads, state, params, value=loss)" in str(error)
        return
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params, value=VALUE)
    close(after.params, optax.apply_updates(params, updates))


def test_a_sharded_state_steps_like_one_on_one_device(tx):
    mesh = Mesh(np.array(jax.devices()[:4]), ("x",), axis_types=(AxisType.Auto,))
    params, grads = problem()
    place = lambda tree: jax.tree.map(
        lambda x: jax.device_put(x, NamedSharding(mesh, P("x") if x.shape[:1] == (4,) else P())), tree
    )
    state = tx.init(params)
    sharded, _ = jax.jit(tx.update)(place(grads), place(state), place(params), value=VALUE)
    single, _ = jax.jit(tx.update)(grads, state, params, value=VALUE)
    close(sharded, single)


def test_a_gradient_that_is_none_counts_as_zero_and_its_parameter_stays(tx):
    params, grads = problem()
    without, _ = jax.jit(tx.update)({**grads, "b": None}, tx.init(params), params, value=VALUE)
    zero, _ = jax.jit(tx.update)({**grads, "b": jnp.zeros(3)}, tx.init(params), params, value=VALUE)
    close(without, {**zero, "b": jnp.zeros(3)})


@pytest.mark.parametrize(
    "bad, message",
    [
        (lambda g, p: (g, None), "needs the parameters"),
        (lambda g, p: ({**g, "extra": g["b"]}, p), r"grads\['extra'\] has no parameter"),
        (lambda g, p: ({"w": g["w"], "s": g["s"]}, p), r"params\['b'\] has no gradient"),
        (lambda g, p: ({**g, "w": g["w"].T}, p), r"differ at \['w'\]: shapes \(3, 4\) and \(4, 3\)"),
    ],
)
def test_bad_calls_are_named(tx, bad, message):
    params, grads = problem()
    grads, given = bad(grads, params)
    with pytest.raises(ValueError, match=message):
        tx.update(grads, tx.init(params), given, value=VALUE)
