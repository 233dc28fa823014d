"""Parameters sharded over devices, tensors whose features would not fit into memory, wrappers of Optax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import metaopt
from metaopt import families
from metaopt.optimizers.common import tiling

MESH = Mesh(np.array(jax.devices()[:8]), ("fsdp",), axis_types=(AxisType.Auto,))
# Each family is a case; that it is a line in FAMILIES is enough.
FAMILIES = sorted(name for name, entry in families.FAMILIES.items() if entry.kind == "optimizer")


def bind(family: str, **settings):
    optimizer = families.build(family, **settings)
    return optimizer.bind(optimizer.init(jax.random.key(0)), num_steps=10)


def sharding_of(path, shape) -> NamedSharding:
    """Fully sharded: the largest axis is split where eight devices divide it."""
    largest = int(np.argmax(shape)) if shape else 0
    names = [("fsdp" if a == largest and n % 8 == 0 else None) for a, n in enumerate(shape)]
    return NamedSharding(MESH, P(*names))


def network(key: int):
    shapes = {"embed": (24, 8), "stack": (2, 8, 16), "bias": (16,)}
    draw = lambda i, shape: jax.random.normal(jax.random.fold_in(jax.random.key(key), i), shape)
    return {name: draw(i, shape) for i, (name, shape) in enumerate(shapes.items())}


def place(tree):
    return jax.tree.map_with_path(lambda path, x: jax.device_put(x, sharding_of(path, x.shape)), tree)


@functools.cache
def steps(family: str):
    """(parameters, state, where they lie) after two steps on eight devices, and on one."""
    tx = bind(family)

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params, value=jnp.float32(1.0))
        return optax.apply_updates(params, updates), state

    params, grads = network(0), network(1)
    sharded = place(params)
    where = metaopt.state_sharding(tx, sharded)
    state = jax.jit(tx.init, out_shardings=where)(sharded)
    jitted = jax.jit(step, out_shardings=(jax.tree.map(lambda p: p.sharding, sharded), where))
    alone, single = (params, tx.init(params)), jax.jit(step)
    many = (sharded, state)
    for _ in range(2):
        many, alone = jitted(*many, place(grads)), single(*alone, grads)
    return many, alone, where


@pytest.mark.parametrize("family", FAMILIES)
def test_fully_sharded_training_equals_one_device(family):
    many, alone, _ = steps(family)
    # Means over shards are added up in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), many, alone)


@pytest.mark.parametrize("family", FAMILIES)
def test_state_lies_like_the_parameters_and_stays_there(family):
    (params, state), _, where = steps(family)
    same = lambda x, sharding: x.sharding.is_equivalent_to(sharding, x.ndim)
    assert all(jax.tree.leaves(jax.tree.map(same, state, where)))
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
    of_sharded_tensors = sum(x.nbytes for x in jax.tree.leaves(state) if x.ndim >= 2)
    if family not in ("hand", "velo"):  # the one has two copies only, the other an LSTM for each tensor
        assert held < 0.3 * of_sharded_tensors


@pytest.mark.parametrize("spec", [P("fsdp"), P(None, "fsdp")])
@pytest.mark.parametrize("family", ["small_fc", "velo", "open", "l2o_pa", "coordinate_lstm"])
def test_a_tensor_in_tiles_stays_on_its_devices(monkeypatch, family, spec):
    """Whichever axis is split: nothing is gathered, and the numbers are those of one device."""
    monkeypatch.setattr(tiling, "MAX_TILE_ON_CPU", 256)
    tx = bind(family)
    draw = lambda seed: {"w": jax.random.normal(jax.random.key(seed), (64, 32))}
    update = lambda grads, state, params: tx.update(grads, state, params, value=jnp.float32(1.0))
    place = lambda tree: jax.tree.map(lambda x: jax.device_put(x, NamedSharding(MESH, spec)), tree)
    params, grads = draw(0), draw(1)
    assert "scan" in str(jax.make_jaxpr(update)(grads, tx.init(params), params))
    where = metaopt.state_sharding(tx, place(params))
    state = jax.device_put(tx.init(params), where)
    out = (jax.tree.map(lambda p: p.sharding, place(params)), where)
    compiled = jax.jit(update, out_shardings=out).lower(place(grads), state, place(params)).compile()
    assert "all-gather" not in compiled.as_text()
    found, _ = compiled(place(grads), state, place(params))
    expected, _ = jax.jit(update)(grads, tx.init(params), params)
    np.testing.assert_allclose(found["w"], expected["w"], rtol=2e-4, atol=1e-8)


def test_state_sharding_tells_a_tuple_of_decays_from_a_tuple_of_parameters():
    specs = [P("fsdp", None), P(None, "fsdp"), P()]
    params = tuple(jax.device_put(jnp.zeros((8, 8)), NamedSharding(MESH, spec)) for spec in specs)
    where = metaopt.state_sharding(bind("small_fc"), params)  # three decays, three parameters
    for tree in where.moments.momentum:
        assert [tree[i].is_equivalent_to(p.sharding, 2) for i, p in enumerate(params)] == [True] * 3


def test_an_explicit_mesh_is_refused_with_the_remedy():
    mesh = Mesh(np.array(jax.devices()[:8]), ("fsdp",), axis_types=(AxisType.Explicit,))
    params = {"w": jax.device_put(jnp.zeros((8, 8)), NamedSharding(mesh, P("fsdp")))}
    with pytest.raises(ValueError, match="whose axes are Auto: pass axis_types"):
        metaopt.state_sharding(bind("small_fc"), params)


def test_state_sharding_of_a_factored_moment_splits_what_was_not_averaged():
    params = {"w": jax.device_put(jnp.zeros((8, 16)), NamedSharding(MESH, P(None, "fsdp")))}
    where = metaopt.state_sharding(bind("small_fc"), params)
    assert where.moments.momentum[0]["w"].spec == P(None, "fsdp")
    assert where.moments.factored[0].row["w"].spec == P(None, None)  # (8, 1)
    assert where.moments.factored[0].col["w"].spec == P(None, "fsdp")  # (1, 16)
    assert where.step.spec == P()


def test_a_parameter_that_was_not_placed_is_named():
    with pytest.raises(ValueError, match=r"params\['b'\] has no NamedSharding"):
        metaopt.state_sharding(bind("small_fc"), {"b": jnp.zeros(3)})


@pytest.mark.parametrize("family", FAMILIES)
def test_tiles_keep_their_dtypes_where_constants_are_float64(monkeypatch, family):
    monkeypatch.setattr(tiling, "MAX_TILE_ON_CPU", 24)
    with jax.enable_x64(True):
        tx, params = bind(family), {"w": jnp.ones((16, 6), jnp.float32)}
        update = lambda grads, state, params: tx.update(grads, state, params, value=jnp.float32(1.0))
        out = jax.eval_shape(update, params, tx.init(params), params)
        assert {x.dtype.name for x in jax.tree.leaves(out)} <= {"float32", "int32"}


LARGE = [(family, {}) for family in FAMILIES] + [("coordinate_lstm", {"rule": "rnnprop"})]


@pytest.mark.parametrize("limit", ["MAX_TILE_ON_CPU", "MAX_TILE"])
@pytest.mark.parametrize("family, settings", LARGE)
def test_fifty_million_parameters_in_one_tensor_take_less_than_a_gigabyte(monkeypatch, family, settings, limit):
    """Read off the compiled program, so nothing of that size is made."""
    monkeypatch.setattr(tiling, "MAX_TILE_ON_CPU", getattr(tiling, limit))
    tx = bind(family, **settings)
    params = {"w": jax.ShapeDtypeStruct((50_000, 1_000), jnp.float32)}

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params, value=jnp.float32(1.0))
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(tx.init, params)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1e9


def test_compose_is_its_equation():
    params, grads = (
        {"w": jnp.array([1.0, -2.0]), "b": jnp.array([3.0])},
        {"w": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])},
    )
    tx = metaopt.compose(
        optax.sgd(0.1),
        clip=1.0,  # the norm of the gradients is 5
        multipliers={"w": 0.5, "b": 1.0},
        weight_decay=0.01,
        decay_mask={"w": True, "b": False},
        schedule=lambda step: 1.0 / (1.0 + step),
    )
    state = tx.init(params)
    for t in range(2):
        updates, state = tx.update(grads, state, params)
        expected = {"w": 0.5 * -0.1 * grads["w"] / 5 - 0.01 * params["w"], "b": -0.1 * grads["b"] / 5}
        jax.tree.map(lambda u, e, t=t: np.testing.assert_allclose(u, e / (1 + t), rtol=1e-6), updates, expected)


def test_pylo_decays_what_has_moved_under_its_mask():
    params, grads = {"w": jnp.array([1.0]), "b": jnp.array([3.0])}, {"w": jnp.array([3.0]), "b": jnp.array([4.0])}
    multipliers, mask = {"w": 0.5, "b": 1.0}, lambda params: {"w": True, "b": False}
    tx = metaopt.compose(optax.sgd(0.1), multipliers=multipliers, weight_decay=0.2, decay_mask=mask, pylo_decay=True)
    updates, _ = tx.update(grads, tx.init(params), params)
    after = optax.apply_updates(params, updates)
    np.testing.assert_allclose(after["w"], (1 - 0.5 * 0.2) * (1.0 - 0.5 * 0.1 * 3.0), rtol=1e-6)
    np.testing.assert_allclose(after["b"], 3.0 - 0.1 * 4.0, rtol=1e-6)


def test_a_decay_may_be_an_array_that_is_learned():
    params = {"w": jnp.array([2.0])}

    def decayed(weight_decay):
        tx = metaopt.compose(optax.sgd(0.1), weight_decay=weight_decay)
        return tx.update({"w": jnp.zeros(1)}, tx.init(params), params)[0]["w"][0]

    np.testing.assert_allclose(jax.jit(jax.grad(decayed))(0.3), -2.0, rtol=1e-6)


def test_pylo_decay_keeps_the_dtype():
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    tx = metaopt.compose(optax.sgd(0.1), multipliers={"w": jnp.float32(0.5)}, weight_decay=0.1, pylo_decay=True)
    assert tx.update(params, tx.init(params), params)[0]["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize("setting", ["clip", "weight_decay"])
def test_negative_settings_are_named(setting):
    with pytest.raises(ValueError, match=f"{setting} must not be negative, got -1"):
        metaopt.compose(optax.sgd(0.1), **{setting: -1})


def test_compose_passes_the_loss_on():
    params = {"w": jnp.ones((4, 3))}
    tx = metaopt.compose(bind("celo"), weight_decay=0.1)
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params, value=jnp.float32(1.0))
    assert np.isfinite(updates["w"]).all()
