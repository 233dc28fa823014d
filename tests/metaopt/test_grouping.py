"""Tensors that are computed together get the updates that they get alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import families
from metaopt.optimizers.common import grouping, packing
from metaopt.optimizers.common.grouping import Groups
from metaopt.optimizers.common.packing import Alike

# A scalar, vectors of one row and of several, a tensor of rank 3, as many matrices as make a pack, and a stack.
SHAPES = [(), (5,), (300,), (128,), (2, 4, 3), (4, 3), (4, 3), (3, 7), (16, 9), (90, 50), (90, 50)]
GROUPS = Groups(packs=[[0, 1, 3, 2], [4, 5, 6, 7, 8]], stacks=[[9, 10]], alone=[])
FAMILIES = [
    ("small_fc", {"relative": True}),
    ("mlp", {"hidden": 4}),
    ("celo", {}),
    ("celo2", {"vectors": "learned"}),
    ("velo", {"hidden": 4, "bank": 2}),
]


def draw(seed: int) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(seed), len(SHAPES))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, SHAPES, strict=True)]


def alone(tensors, whole):
    del whole
    return Groups([], [], list(range(len(tensors))))


@pytest.mark.parametrize("family, settings", FAMILIES, ids=lambda x: x if isinstance(x, str) else "")
def test_groups_change_no_update(monkeypatch, family, settings):
    learned = families.build(family, **settings)
    tx = learned.bind(learned.init(jax.random.key(0)), num_steps=10)
    params, state = draw(0), tx.init(draw(0))
    for seed in (1, 2):  # the second step reads what the first has accumulated
        monkeypatch.undo()
        together, new_state = jax.jit(tx.update)(draw(seed), state, params, value=jnp.float32(1.5))
        monkeypatch.setattr(grouping, "choose", alone)
        one_by_one, _ = jax.jit(lambda *args: tx.update(*args, value=1.5))(draw(seed), state, params)
        state = new_state
        for a, b in zip(together, one_by_one, strict=True):  # sums in another order
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-7 * float(jnp.max(jnp.abs(b))))


def test_which_tensors_are_grouped():
    assert grouping.choose(list(map(Alike, SHAPES)), [True] * len(SHAPES)) == GROUPS
    few = [(4, 3), (4, 3), (3, 7), (5,), (300, 300), (300, 300)]
    assert grouping.choose(list(map(Alike, few)), [True] * 6) == Groups([], [[0, 1]], [2, 3, 4, 5])
    assert grouping.choose([Alike((2, 3))] * 6, [False] * 6) == Groups([], [list(range(6))], [])
    stacks = [Alike((5,), 8), Alike((4, 3), 8), Alike((90, 50), 8), Alike((90, 50))]
    assert grouping.choose(stacks, [True] * 4) == Groups([[0], [1]], [], [2, 3])


def test_groups_are_bounded():
    half = grouping.MAX_GROUP // 2
    assert grouping._cut([3, 5, 6, 7], [half] * 8) == [[3, 5], [6, 7]]
    assert grouping._cut([0, 1], [2 * half, 2 * half]) == [[0], [1]]


def test_a_pack_returns_its_tensors_and_their_means():
    order = GROUPS.packs[0]
    tensors = [draw(3)[i] for i in order]
    places = packing.Packing([Alike(SHAPES[i]) for i in order])
    rows = places.pack(tensors)
    assert rows.shape == (1 + 1 + 1 + 3, packing.WIDTH)
    for a, b in zip(places.unpack(rows), tensors, strict=True):
        np.testing.assert_array_equal(a, b)
    means = places.means([rows, jnp.ones_like(rows)])
    np.testing.assert_allclose(means[:, 0], [jnp.mean(x) for x in tensors], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(means[:, 1], 1.0)
    np.testing.assert_array_equal(places.spread(jnp.arange(4)), [0, 1, 2, 3, 3, 3])


def test_a_bad_tensor_does_not_spoil_those_that_are_packed_with_it():
    learned = families.build("small_fc")
    tx = learned.bind(learned.init(jax.random.key(0)))
    params = {"a": jnp.ones(4), "b": jnp.full(3, jnp.nan)}
    updates, _ = jax.jit(tx.update)(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    assert np.isfinite(updates["a"]).all() and np.isnan(updates["b"]).all()
