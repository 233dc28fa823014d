"""What leaves of all sorts, and gradients of no use, do to every optimizer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.metaopt.cases import CASES, IDS, NUM_STEPS, VALUE, bound, built, close, compiled, problem

ALL = pytest.mark.parametrize("index", range(len(CASES)), ids=IDS)
CLIPPED_AT = {"velo": 1000.0, "celo": 1000.0, "celo2": 1000.0}  # others skip what they cannot use
FLOAT0 = np.zeros((3,), jax.dtypes.float0)


def finite(tree) -> bool:
    return all(np.isfinite(x).all() for x in jax.tree.leaves(tree))


@ALL
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e20, -3e38])
def test_a_bad_gradient_is_as_if_it_had_been_the_one_that_can_be_used(index, bad):
    """Zero, or for VeLO's family the bound that the reference clips to; three steps, the second is bad."""
    bound_of = CLIPPED_AT.get(CASES[index][0])
    usable = 0.0 if bound_of is None or np.isnan(bad) else np.clip(bad, -bound_of, bound_of)
    params, grads = problem()
    found = []
    for entry in (bad, usable):
        state, p = bound(index).init(params), params
        spoiled = {"w": grads["w"].at[1, 2].set(entry), "b": jnp.full(3, entry), "s": jnp.full((), entry)}
        for g in (grads, spoiled, grads):
            updates, state = compiled(index)(g, state, p, value=VALUE)
            p = optax.apply_updates(p, updates)
        found.append((p, state))
    assert finite(found[0])
    jax.tree.map(np.testing.assert_array_equal, *found)


@ALL
def test_what_cannot_be_trained_stays_and_has_no_state(index):
    params, grads = problem()
    others = {
        "count": jnp.arange(3, dtype=jnp.int32),
        "flag": jnp.array(True),
        "key": jax.random.key(7),
        "none": jnp.zeros((0, 3), jnp.float32),
    }
    none = {"count": FLOAT0, "flag": None, "key": None, "none": jnp.zeros((0, 3), jnp.float32)}
    tx = bound(index)
    state = tx.init({"known": params, "others": others})
    assert [x.shape for x in jax.tree.leaves(state)] == [x.shape for x in jax.tree.leaves(tx.init({"known": params}))]

    @jax.jit
    def update(grads, params, state):
        return tx.update({"known": grads, "others": none}, state, {"known": params, "others": others}, value=VALUE)

    updates, state = update(grads, params, state)
    assert finite(state) and updates["others"]["key"] is None
    assert jax.tree.map(lambda u: (u.shape, u.dtype.name, int(u.sum())), updates["others"]) == {
        "count": ((3,), "int32", 0),
        "flag": ((), "bool", 0),
        "key": None,
        "none": ((0, 3), "float32", 0),
    }
    alone, _ = compiled(index)(grads, tx.init(params), params, value=VALUE)
    if CASES[index][0] != "open":  # which reads the depth of a layer off its path
        close(updates["known"], alone)


@ALL
def test_a_complex_tensor_is_two_real_ones(index):
    """As with the wrapper of Optax; three steps."""
    draw = lambda seed: jax.random.normal(jax.random.key(seed), (3, 2), jnp.float32)
    params = {"c": jax.lax.complex(draw(0), draw(1)), "w": draw(2)}
    grads = {"c": jax.lax.complex(draw(3), draw(4)), "w": draw(5)}
    tx = bound(index)

    @functools.partial(jax.jit, static_argnums=0)
    def train(wrap):
        wrapped = optax.contrib.split_real_and_imaginary(tx) if wrap else tx
        p, state = params, wrapped.init(params)
        for i in range(3):
            extra = {} if wrap else {"value": VALUE}
            updates, state = wrapped.update(optax.tree.scale(i + 1.0, grads), state, p, **extra)
            p = optax.apply_updates(p, updates)
        return p, updates, state

    after, updates, state = train(False)
    assert finite((after, state)) and updates["c"].dtype == jnp.complex64
    assert np.any(updates["c"].real != 0) and np.any(updates["c"].imag != 0)
    if CASES[index][0] in ("velo", "celo", "open"):  # two need the loss, which Optax's drops; one the path of a layer
        return
    close(after, train(True)[0], rtol=1e-4, atol=1e-6)


COUNT, ONES = jnp.arange(2, dtype=jnp.int32), jnp.ones(2, jnp.float32)
BAD_LEAVES = [
    ({"n": COUNT}, {"n": COUNT}, r"params\['n'\] is int32, and only floating and complex"),
    ({"n": COUNT}, {"n": ONES}, r"its gradient must be None, not float32; or leave it out with"),
    ({"k": jax.random.key(0)}, {"k": jnp.ones(())}, r"params\['k'\] is key<fry>, and only"),
    ({"w": jnp.ones(3, jnp.float32)}, {"w": FLOAT0}, r"params\['w'\] is float32 and its gradient float0"),
    ({"w": ONES}, {"w": 1j * ONES}, r"params\['w'\] is float32 and its gradient complex64: it must be"),
    ({"w": jax.nn.relu}, {"w": ONES}, r"params\['w'\] is no array but .*: pass a tree of arrays"),
    ({"w": ONES}, {"w": 1.0}, r"grads\['w'\] is no array but float: .* numbers as jnp.asarray\(number\)"),
    ([1.0], [1.0], r"params\[0\] is no array but float"),
]


@ALL
def test_leaves_that_cannot_be_used_are_named(index):
    tx = bound(index)
    state = tx.init({"w": ONES, "v": ONES, "u": ONES})
    for params, grads, message in BAD_LEAVES:
        with pytest.raises(ValueError, match=message):
            tx.update(grads, state, params, value=VALUE)
    for params, message in ((1.0, "params is no array but float"), ({"f": max}, r"params\['f'\] is no array but")):
        with pytest.raises(ValueError, match=message):
            tx.init(params)


@ALL
def test_a_tree_without_tensors_is_left_alone(index):
    tx = bound(index, num_tensors=0) if "num_tensors" in CASES[index][1] else bound(index)
    for params in ({}, {"n": jnp.arange(3)}):
        updates, _ = tx.update(jax.tree.map(lambda x: None, params), tx.init(params), params, value=VALUE)
        assert jax.tree.map(lambda x: x.tolist(), updates) == jax.tree.map(lambda x: [0, 0, 0], params)


TREES = {  # a zero of a parameter, of its gradient, of both; constants; one element
    "vectors": ({"z": jnp.zeros(3), "o": jnp.ones(1)}, {"z": jnp.array([0.3, 0.0, -0.1]), "o": jnp.ones(1)}),
    "matrix": ({"m": jnp.zeros((2, 2))}, {"m": jnp.zeros((2, 2))}),
}


@ALL
@pytest.mark.parametrize("tree", TREES)
def test_derivatives_of_an_update_are_finite(index, tree):
    """Of theta, parameters and gradients; first and second order, in reverse and in forward mode; two steps."""
    params, grads = TREES[tree]
    optimizer, theta = built(index, num_tensors=len(params))

    def loss(point):
        theta, params, grads = point
        tx = optimizer.bind(theta, num_steps=NUM_STEPS)

        def step(carry, _):
            p, state = carry
            updates, state = tx.update(grads, state, p, value=VALUE)
            return (optax.apply_updates(p, updates), state), None

        (after, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=2)
        return sum(jnp.sum(p * p) for p in jax.tree.leaves(after))

    @jax.jit
    def derivatives(point):
        ones = jax.tree.map(jnp.ones_like, point)
        return jax.jvp(jax.grad(loss), (point,), (ones,))

    assert finite(derivatives((theta, params, grads)))
