"""Many small tensors of one shape: one array for a rule, and nothing that a user could see."""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import metaopt
from metaopt import families
from metaopt.optimizers.common import grouping, stacking
from metaopt.optimizers.common.stacking import FEWEST, Stacked, Stacking
from tests.metaopt.cases import OPTIMIZERS, close

DEFAULTS = [(family, {}) for family in OPTIMIZERS if family != "hand"]  # which is Optax's and takes no stacks
VARIANTS = [
    ("celo2", {"vectors": "learned", "orthogonalize": False}),
    ("coordinate_lstm", {"rule": "rnnprop"}),
    ("l2o_pa", {"heads": "p,b"}),
    ("small_fc", {"schedule": True, "relative": True}),
]


def bind(family: str, **settings):
    optimizer = families.build(family, **settings)
    return optimizer.bind(optimizer.init(jax.random.key(0)), num_steps=10)


def draw(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def network(seed: int) -> dict:
    """As many matrices and vectors as make stacks, one vector complex, and tensors that are alone."""
    seed *= 1000
    layers = {f"layer_{i}": {"w": draw(seed + i, 2, 3), "b": draw(seed + 100 + i, 3)} for i in range(FEWEST)}
    layers["layer_1"]["b"] = jax.lax.complex(draw(seed + 201, 3), draw(seed + 202, 3))
    return {**layers, "head": {"w": draw(seed + 203, 3, 5), "b": draw(seed + 204, 5)}, "embed": draw(seed + 205, 2, 3)}


def square(params) -> jax.Array:
    return sum(jnp.sum(jnp.abs(p) ** 2) for p in jax.tree.leaves(params))


def without_stacks(monkeypatch) -> None:
    monkeypatch.setattr(stacking, "FEWEST", math.inf)


@pytest.mark.parametrize("family, settings", DEFAULTS + VARIANTS, ids=lambda x: x if isinstance(x, str) else "")
def test_stacks_change_no_update(monkeypatch, family, settings):
    tx, params = bind(family, **settings), network(0)

    def train():
        update, state = jax.jit(functools.partial(tx.update, value_fn=square)), tx.init(params)
        for seed in (1, 2):  # the second step reads what the first has accumulated
            updates, state = update(network(seed), state, params, value=jnp.float32(1.5))
        return updates, state

    updates, state = train()
    without_stacks(monkeypatch)
    expected, expected_state = train()
    assert len(jax.tree.leaves(state)) < 0.5 * len(jax.tree.leaves(expected_state))
    # Sums are taken in another order, and a root of a small second moment enlarges what that makes.
    close(updates, expected, rtol=5e-4, atol=2e-7)


def test_stacks_change_nothing_of_what_open_reads_by_name(monkeypatch):
    tx, params = bind("open", noisy="actor"), {"actor": network(0), "critic": network(1)}
    params, grads = (jax.tree.map(jnp.real, tree) for tree in (params, {"actor": network(2), "critic": network(3)}))
    units = lambda layer: jnp.arange(1.0, 1.0 + layer["b"].size)
    layers = {name: layer for name, layer in params["actor"].items() if name != "embed"}
    activations = jax.tree.map(units, layers, is_leaf=lambda x: "w" in x) | {"embed": jnp.ones(3)}
    activations = {"actor": activations, "critic": jax.tree.map(jnp.zeros_like, activations)}
    for extra in ({"key": jax.random.key(5)}, {"noise": params}):
        update = functools.partial(tx.update, activations=activations, **extra)
        updates, _ = jax.jit(update)(grads, tx.init(params), params)
        with monkeypatch.context() as patch:
            without_stacks(patch)
            expected, _ = jax.jit(functools.partial(update))(grads, tx.init(params), params)  # not the one of before
        close(updates, expected, rtol=5e-4, atol=2e-7)


def test_a_state_has_one_array_for_all_tensors_of_a_shape():
    few, many = ({f"{i}": jnp.ones((2, 3)) for i in range(num)} for num in (FEWEST, 5 * FEWEST))
    for family, settings in DEFAULTS:
        tx = bind(family, **settings)
        assert len(jax.tree.leaves(tx.init(few))) == len(jax.tree.leaves(tx.init(many))), family


def test_what_a_further_tensor_costs_the_compiler():
    """An update of Adam takes 47 instructions for each tensor, that of small_fc took 120 without stacks."""
    tx = bind("small_fc")

    def num_instructions(num: int) -> int:
        params = {f"{i}": jnp.ones((2, 3)) for i in range(num)}
        return jax.jit(tx.update).lower(params, tx.init(params), params).compile().as_text().count(" = ")

    assert (num_instructions(60) - num_instructions(20)) / 40 < 20


def test_which_tensors_are_in_a_stack():
    small, large = (2, 3), (2**9, 2**8)
    leaves = [jnp.zeros(shape) for shape in [small] * FEWEST + [(5,)] + [small] + [large] * FEWEST]
    stacks = Stacking(leaves)
    stacked = stacks.stack(leaves)
    assert isinstance(stacked, Stacked) and list(stacked.stacks) == ["(2, 3)"]
    assert stacked.stacks["(2, 3)"].shape == (FEWEST + 1, 2, 3)
    alone = [FEWEST, *range(FEWEST + 2, 2 * FEWEST + 2)]  # one of its shape; too large
    assert stacks.members == [*alone, [*range(FEWEST), FEWEST + 1]]
    few = leaves[2 : FEWEST + 1]
    assert Stacking(few).stack(few) is not None and Stacking(few).members == list(range(FEWEST - 1))


def test_tensors_with_other_labels_are_in_other_stacks():
    tensors = [jnp.full(3, i) for i in range(2 * FEWEST + 1)]
    stacks = Stacking(tensors, labels=["even", "odd"] * FEWEST + ["third"])
    stacked = stacks.stack(tensors)
    assert [x[:, 0].tolist() for x in stacked.stacks.values()] == [
        list(range(0, 2 * FEWEST, 2)),
        list(range(1, 2 * FEWEST, 2)),
    ]
    for a, b in zip(stacks.unstack(stacked), tensors, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_stack_is_bounded(monkeypatch):
    monkeypatch.setattr(stacking, "MAX_GROUP", 100)
    tensors = [jnp.zeros((2, 5)) for _ in range(25)]
    stacked = Stacking(tensors).stack(tensors)
    assert [len(x) for x in stacked.stacks.values()] == [8, 8, 9]
    assert grouping.MAX_GROUP != 100


def test_updates_are_taken_from_stacks_alike_however_they_are_transformed():
    tensors = [draw(i, 2, 3) for i in range(FEWEST)]

    def f(tensors):
        stacks = Stacking(tensors)
        doubled = stacks.unstack(jax.tree.map(lambda x: 2.0 * x, stacks.stack(tensors)))
        return sum((i + 1.0) * jnp.sum(x**3) for i, x in enumerate(doubled))

    expected = [24.0 * (i + 1) * x**2 for i, x in enumerate(tensors)]
    close(jax.grad(f)(tensors), expected)
    close(jax.jit(jax.grad(jax.checkpoint(f)))(tensors), expected)
    batch = [jnp.stack([x, 3.0 * x]) for x in tensors]
    close(jax.jit(jax.vmap(jax.grad(f)))(batch), [jnp.stack([x, 9.0 * x]) for x in expected])
    of_gradient = jax.jit(lambda x: jax.jvp(jax.grad(f), (x,), (x,))[1])(tensors)  # forward over reverse
    close(of_gradient, [2.0 * x for x in expected])


def test_sharded_tensors_are_updated_as_on_one_device():
    mesh = Mesh(np.array(jax.devices()[:8]), ("fsdp",), axis_types=(AxisType.Auto,))
    tx = bind("small_fc")
    tree = lambda seed: {f"{i}": draw(seed + i, 8, 3) for i in range(FEWEST)} | {"alone": draw(seed + 99, 16, 8)}
    place = lambda tree: jax.device_put(tree, NamedSharding(mesh, P("fsdp")))
    params, grads = tree(0), tree(100)
    where = metaopt.state_sharding(tx, place(params))
    assert where.moments.momentum[0].alone["alone"].spec == P("fsdp")
    assert where.moments.momentum[0].stacks["(8, 3)"].spec == P(None, "fsdp")
    assert where.moments.factored[0].row.stacks["(8, 3)"].spec == P(None, None)  # (8, 1, 3): averaged over the axis
    assert where.moments.factored[0].col.stacks["(8, 3)"].spec == P(None, "fsdp")  # (8, 8, 1)
    state = jax.jit(tx.init, out_shardings=where)(place(params))
    update = jax.jit(tx.update, out_shardings=(jax.tree.map(lambda p: p.sharding, place(params)), where))
    updates, state = update(place(grads), state, place(params))
    expected, expected_state = jax.jit(tx.update)(grads, tx.init(params), params)
    close((updates, state), (expected, expected_state), rtol=2e-4, atol=1e-8)
    held = state.moments.momentum[0].stacks["(8, 3)"].addressable_shards[0].data
    assert held.shape == (FEWEST, 1, 3)


def test_tensors_of_one_shape_that_lie_apart_have_a_state_on_every_device():
    mesh = Mesh(np.array(jax.devices()[:8]), ("fsdp",), axis_types=(AxisType.Auto,))
    lies = lambda i: NamedSharding(mesh, P("fsdp") if i else P(None, "fsdp"))
    params = {f"{i}": jax.device_put(draw(i, 8, 8), lies(i)) for i in range(FEWEST)}
    where = metaopt.state_sharding(bind("mlp"), params)
    assert where.moments.momentum[0].stacks["(8, 8)"].spec == P()


class Layers(eqx.Module):
    layers: list


class Network(nnx.Module):
    def __init__(self):
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=nnx.Rngs(i)) for i in range(FEWEST)])


@pytest.mark.parametrize("family", ["small_fc", "velo", "coordinate_lstm"])
def test_stacks_in_the_modules_of_other_libraries(family):
    """Three steps of nnx and of equinox are those of a plain tree."""
    model, tx, x = Network(), bind(family), draw(7, 4, 3)
    tx = optax.GradientTransformationExtraArgs(tx.init, jax.jit(tx.update))
    module = Layers([(layer.kernel[...], layer.bias[...]) for layer in model.layers])
    params, optimizer = module.layers, nnx.Optimizer(model, tx, wrt=nnx.Param)

    def loss(layers):
        y = x
        for kernel, bias in layers:
            y = jnp.tanh(y @ kernel + bias)
        return jnp.mean((y - 1.0) ** 2)

    state, module_state = tx.init(params), tx.init(module)
    plain_grad = jax.jit(jax.value_and_grad(loss))
    module_grad = eqx.filter_value_and_grad(lambda m: loss(m.layers))
    model_grad = nnx.value_and_grad(lambda m: loss([(layer.kernel[...], layer.bias[...]) for layer in m.layers]))
    for _ in range(3):
        value, grads = plain_grad(params)
        updates, state = tx.update(grads, state, params, value=value)
        params = optax.apply_updates(params, updates)
        value, grads = module_grad(module)
        updates, module_state = tx.update(grads, module_state, module, value=value)
        module = eqx.apply_updates(module, updates)
        value, grads = model_grad(model)
        optimizer.update(model, grads, value=value)
    close(module.layers, params, rtol=1e-4, atol=1e-6)
    close([(layer.kernel[...], layer.bias[...]) for layer in model.layers], params, rtol=1e-4, atol=1e-6)
