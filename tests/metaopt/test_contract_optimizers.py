"""What every learned optimizer family must satisfy; see ``cases`` for how a family joins."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.metaopt.cases import CASES, IDS, NUM_STEPS, VALUE, bound, built, close, compiled, problem


@pytest.fixture(params=range(len(CASES)), ids=IDS)
def index(request):
    return request.param


@pytest.fixture
def case(index):
    return built(index)


@pytest.fixture
def tx(index):
    return bound(index)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_updates_have_the_dtype_of_params_and_state_is_float32(index, tx, dtype):
    params, grads = problem(dtype)
    updates, state = compiled(index)(grads, tx.init(params), params, value=VALUE)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), updates) == jax.tree.map(lambda x: (x.shape, x.dtype), params)
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert all(x.dtype == jnp.float32 for x in floats)
    assert all(np.isfinite(np.asarray(u, np.float32)).all() for u in jax.tree.leaves(updates))


def test_bfloat16_gives_the_rounded_float32_update(index, tx):
    params, grads = problem(jnp.bfloat16)
    wide = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)
    updates, _ = compiled(index)(grads, tx.init(params), params, value=VALUE)
    exact, _ = compiled(index)(wide(grads), tx.init(wide(params)), wide(params), value=VALUE)
    close(wide(updates), exact, rtol=2**-8, atol=1e-9)  # bfloat16 keeps 8 bits


def test_jit_matches_eager(index, tx):
    params, grads = problem()
    args = (grads, tx.init(params), params)
    close(tx.update(*args, value=VALUE), compiled(index)(*args, value=VALUE))


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
    close(looped, scanned, atol=1e-6)  # three steps let roundings grow


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
    plain, _ = compiled(index)(grads, tx.init(params), params, value=VALUE)
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


def test_a_sharded_state_steps_like_one_on_one_device(index, tx):
    mesh = Mesh(np.array(jax.devices()[:4]), ("x",), axis_types=(AxisType.Auto,))
    params, grads = problem()
    place = lambda tree: jax.tree.map(
        lambda x: jax.device_put(x, NamedSharding(mesh, P("x") if x.shape[:1] == (4,) else P())), tree
    )
    state = tx.init(params)
    sharded, _ = compiled(index)(place(grads), place(state), place(params), value=VALUE)
    single, _ = compiled(index)(grads, state, params, value=VALUE)
    close(sharded, single)


def test_a_gradient_that_is_none_counts_as_zero_and_its_parameter_stays(index, tx):
    params, grads = problem()
    without, _ = compiled(index)({**grads, "b": None}, tx.init(params), params, value=VALUE)
    zero, _ = compiled(index)({**grads, "b": jnp.zeros(3)}, tx.init(params), params, value=VALUE)
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
