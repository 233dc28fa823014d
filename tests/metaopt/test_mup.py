"""muP: what is inferred from shapes, for flax's layers and beyond, and what it does to an optimizer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from metaopt import families, mup


class Block(nn.Module):
    num_heads: int
    head: int
    use_bias: bool

    @nn.compact
    def __call__(self, x, _):
        width = x.shape[-1]
        attention = nn.MultiHeadDotProductAttention(
            self.num_heads, qkv_features=self.num_heads * self.head, use_bias=self.use_bias, name="attention"
        )
        x = x + attention(nn.LayerNorm(name="norm")(x))
        up = nn.Dense(4 * width, use_bias=self.use_bias, name="up")(x)
        return x + nn.Dense(width, use_bias=self.use_bias, name="down")(nn.relu(up)), None


class Network(nn.Module):
    """Tokens and an image in; all the layers that the inference knows by their layout."""

    width: int
    num_heads: int = 2
    head: int = 8
    use_bias: bool = True

    @nn.compact
    def __call__(self, tokens, image):
        image = nn.Conv(self.width, (3, 3), name="patches")(image)
        image = nn.Conv(self.width, (3, 3), use_bias=False, name="conv")(image).mean(axis=(1, 2))
        x = nn.Embed(11, self.width, name="tokens")(tokens) + image[:, None]
        x = x + self.param("pos_embedding", nn.initializers.normal(0.02), (1, 7, self.width))
        scan = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = scan(self.num_heads, self.head, self.use_bias, name="layers")(x, None)
        heads = nn.DenseGeneral((self.num_heads, self.head), use_bias=self.use_bias, name="split")(x)
        x = nn.DenseGeneral(self.width, axis=(-2, -1), use_bias=self.use_bias, name="merge")(heads)
        return nn.Dense(5, name="head")(x)


def shapes(**settings):
    inputs = jnp.zeros((1, 7), jnp.int32), jnp.zeros((1, 8, 8, 3))
    return jax.eval_shape(Network(**settings).init, jax.random.key(0), *inputs)["params"]


def by_path(tree):
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in jax.tree.leaves_with_path(tree)}


def expected(width, heads, head):
    """Kind and fan-in of every kernel of ``Network``."""
    return {
        "patches/kernel": ("input", 27),
        "conv/kernel": ("hidden", 9 * width),
        "tokens/embedding": ("input", 1),
        "pos_embedding": ("input", 1),
        "layers/attention/query/kernel": ("hidden", width),
        "layers/attention/key/kernel": ("hidden", width),
        "layers/attention/value/kernel": ("hidden", width),
        "layers/attention/out/kernel": ("hidden", heads * head),
        "layers/up/kernel": ("hidden", width),
        "layers/down/kernel": ("hidden", 4 * width),
        "split/kernel": ("hidden", width),
        "merge/kernel": ("hidden", heads * head),
        "head/kernel": ("output", width),
    }


# Width alone cannot grow: heads multiply by their size.
GROWTH = {"heads": (4, 8), "heads' size": (2, 16), "both": (4, 16)}


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("growth", GROWTH)
def test_layers_of_flax(growth, use_bias):
    num_heads, head = GROWTH[growth]
    wide = {"width": 64, "num_heads": num_heads, "head": head, "use_bias": use_bias}
    # Without a bias beside it nothing tells a DenseGeneral of ours from another.
    declared = None if use_bias else {"split/kernel": 1, "merge/kernel": 2}
    narrow = shapes(width=16, use_bias=use_bias)
    tensors = mup.infer(shapes(**wide), narrow, stacked={"^layers/": 1}, contracted=declared)
    kinds, fans, multipliers, stds, forwards = map(by_path, tensors)
    answer = expected(64, num_heads, head)
    assert {path: (kinds[path], fans[path]) for path in kinds if kinds[path] != "vector"} == answer
    for path, kind in kinds.items():
        n = answer.get(path, (kind, 1))[1]
        row = {
            "input": (1.0, n**-0.5, 1.0),
            "hidden": (1 / n, n**-0.5, 1.0),
            "output": (1.0, 0.0, 1 / n),
            "vector": (1.0, 1.0, 1.0),
        }
        assert (multipliers[path], stds[path], forwards[path]) == row[kind]


def test_relative_to_the_width_of_the_base():
    wide, narrow = shapes(width=64, head=16), shapes(width=16)
    tensors = mup.infer(wide, narrow, stacked={"^layers/": 1}, relative=True)
    multipliers = by_path(tensors.multiplier)
    assert multipliers["layers/up/kernel"] == 16 / 64 and multipliers["layers/attention/out/kernel"] == 16 / 32
    assert by_path(tensors.forward)["head/kernel"] == 16 / 64
    assert by_path(tensors.init_std)["head/kernel"] == 0.0 and by_path(tensors.init_std)["conv/kernel"] == 1 / 24


def test_flax_nnx():
    attention = lambda width: nnx.eval_shape(
        lambda: nnx.state(nnx.MultiHeadAttention(2, width, rngs=nnx.Rngs(0), decode=False), nnx.Param)
    )
    tensors = mup.infer(attention(32), attention(16))
    found = {path.removesuffix("/value"): kind for path, kind in by_path(tensors.kind).items()}
    assert {path for path, kind in found.items() if kind == "hidden"} == {
        f"{name}/kernel" for name in ("query", "key", "value", "out")
    }
    assert set(by_path(tensors.fan_in).values()) == {1, 32}


def of(shape, name="w"):
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32)}


@pytest.mark.parametrize(
    "wide, narrow, options, message",
    [
        (of((8, 8)), of((8, 8)), {}, "the same shapes: give base another width"),
        (of((8, 8)), of((4, 4), "v"), {}, r"different trees: base lack \['w'\]"),
        (of((8, 8)), of((4,)), {}, "w differs in more than width"),
        (of((8, 8)), [of((4, 4))], {}, r"different trees: base lack \['w'\]"),
        (of((3, 8, 8)), of((2, 4, 4)), {"stacked": {"w": 1}}, "w differs in more than width"),
        (of((8, 2, 8)), of((4, 2, 4)), {}, r"w: which axes of \(8, 2, 8\) are contracted, where axes \[0, 2\] grow\?"),
        (of((8, 8, 8)), of((4, 4, 4)), {}, r"axes \[0, 1, 2\] grow\? say how many with contracted="),
        (of((8, 8)), of((4, 4)), {"stacked": {"layers": 1}}, "'layers' is found in no path; the paths are w"),
        (of((8, 8)), of((4, 4)), {"contracted": {"w": 3}}, "w has 2 axes, 'w' says 3 of them"),
    ],
)
def test_what_cannot_be_told_is_an_error(wide, narrow, options, message):
    with pytest.raises(ValueError, match=message):
        mup.infer(wide, narrow, **options)


def test_a_stack_that_is_not_declared_is_seen_beside_its_bias():
    with pytest.raises(ValueError, match=r"layers/attention/key/kernel: .* beside a bias of \(3, 4, 8\)\?"):
        mup.infer(shapes(width=64, num_heads=4), shapes(width=16))


def test_initialize_draws_matrices_and_keeps_vectors():
    at = lambda width: {
        "hidden": {"kernel": jnp.ones((width, width)), "bias": jnp.full(width, 3.0)},
        "head": {"kernel": jnp.ones((width, 3), jnp.bfloat16)},
    }
    params = at(128)
    drawn = mup.initialize(mup.infer(params, at(64)), params, jax.random.key(0))
    kernel = drawn["hidden"]["kernel"]
    # 16,384 draws: their standard deviation is known to 0.6 %, their mean to 0.8 % of it.
    np.testing.assert_allclose(np.std(kernel), 128**-0.5, rtol=0.02)
    assert abs(np.mean(kernel)) < 0.04 * 128**-0.5
    np.testing.assert_array_equal(drawn["hidden"]["bias"], 3.0)
    assert drawn["head"]["kernel"].dtype == jnp.bfloat16 and not drawn["head"]["kernel"].any()


PARAMS = {"input": jnp.ones((3, 4)), "hidden": jnp.ones((4, 4), jnp.bfloat16), "output": jnp.ones((4, 2))}
GRADS = jax.tree.map(lambda p: jax.random.normal(jax.random.key(1), p.shape, p.dtype), PARAMS)
MULTIPLIERS = {"input": 1.0, "hidden": 0.25, "output": 2.0}


def one_update(tx):
    return jax.jit(tx.update)(GRADS, tx.init(PARAMS), PARAMS)[0]


@pytest.mark.parametrize("name", ["adam", "muLO"])
def test_every_update_is_multiplied_in_its_dtype(name):
    learned = families.build("small_fc", hidden=32, step_multiplier=0.01)
    tx = optax.adam(0.1) if name == "adam" else learned.bind(learned.init(jax.random.key(0)))
    plain, scaled = one_update(tx), one_update(optax.chain(tx, mup.scale_updates(MULTIPLIERS)))
    for leaf, multiplier in MULTIPLIERS.items():
        assert scaled[leaf].dtype == PARAMS[leaf].dtype
        np.testing.assert_array_equal(scaled[leaf], multiplier * plain[leaf])  # powers of two: exact


def test_updates_and_multipliers_of_different_trees():
    tx = mup.scale_updates({"input": 1.0, "hidden": 1.0})
    with pytest.raises(ValueError, match=r"multipliers are different trees: multipliers lack \['output'\]"):
        tx.update(GRADS, tx.init(PARAMS), PARAMS)
