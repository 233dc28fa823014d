"""muP: step sizes, learned or tuned, that carry over to wider networks.

tensors = mup.infer(jax.eval_shape(wide_init, key), jax.eval_shape(narrow_init, key))
params = mup.initialize(tensors, wide_init(key), key)
tx = optax.chain(metaopt.load(name), mup.scale_updates(tensors.multiplier))

Three things are left to the network: what an output tensor makes, bias included, is to be
multiplied by its ``forward``; logits of an embedding that is tied, which counts as input, are
to be divided by the width; logits of attention by the size of a head instead of its root.

Source: Therien et al., "muLO: Compute-efficient meta-generalization of learned optimizers",
arXiv:2406.00153, equation 3; Yang et al., "Tensor programs V", arXiv:2203.03466, table 8.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

# The layout of flax.
VECTOR = re.compile(r"(^|/)(bias|scale)$")
LOOKED_UP = re.compile(r"embedding$")  # a row is read or added: nothing is contracted
KERNEL = re.compile(r"(^|/)kernel$")
ATTENTION = {"query": 1, "key": 1, "value": 1, "out": 2}  # axes that kernels of rank 3 contract

# By whether the fan-in grows, and what the tensor makes.
KINDS = {(False, False): "vector", (False, True): "input", (True, True): "hidden", (True, False): "output"}


class Tensors(NamedTuple):
    """What muP says of every tensor: trees like the parameters, of Python values."""

    kind: Any  # "input", "hidden", "output" or "vector"
    fan_in: Any  # product of the contracted axes; 1 for lookups and vectors
    multiplier: Any  # of the update
    init_std: Any  # of the initial values; 0 for output tensors
    forward: Any  # of what an output tensor makes; 1 elsewhere


def infer(
    params: Any,
    base: Any,
    *,
    relative: bool = False,
    stacked: Mapping[str, int] | None = None,
    contracted: Mapping[str, int] | None = None,
) -> Tensors:
    """Infers the muP of a network from the shapes of its parameters at two widths.

    An axis whose size differs grows with width. With n the product of the axes that a
    tensor's layer contracts (the fan-in),

        kind     what grows               multiplier   init_std     forward
        input    only what it makes       1            n^(-1/2)     1
        hidden   both                     1 / n        n^(-1/2)     1
        output   only what it contracts   1            0            1 / n
        vector   nothing, or it has one   1            n^(-1/2)     1
                 axis, or is bias or scale

    Which axes are contracted follows flax: all but as many as the bias beside a kernel has;
    without a bias, the first of query, key and value kernels (width, heads, head), the first
    two of out kernels (heads, head, width) of attention, and all but the last elsewhere:
    (in, out), (height, width, in, out). None of an embedding, a bias or a scale. A layout
    with the outputs first, such as Equinox's, has to be transposed.

    The fan-in of an attention's out kernel is heads * head. (The published code reads head
    alone, the second axis, which is right up to a constant only while the heads stay as
    many.)

    Args:
      params: parameters, or their shapes from ``jax.eval_shape``, of the network to train.
      base: of the same network at another width. Only the width may differ.
      relative: 1 / n becomes n_base / n, which is 1 at the width of ``base``: for a
        learning rate that was tuned there. muLO was meta-trained without.
      stacked: ``regular expression -> number`` of leading axes of the tensors whose path,
        such as "layers/Dense_0/kernel", it is found in. These count layers (``nn.scan``) or
        experts, not width. Where it is left out, a bias gives it away; without one, a stack
        of matrices passes for a convolution.
      contracted: the same for the number of axes after those that are contracted, where
        flax's layout is not the network's.

    Raises:
      ValueError: naming the path, if the trees differ in more than sizes, if nothing grows,
        or if it cannot be told which axes are contracted; naming the expression, if it is
        found in no path.
    """
    _check_same_paths(params, base, "params", "base")
    shapes, base_shapes = _shapes(params), _shapes(base)
    if shapes == base_shapes:
        raise ValueError("params and base have the same shapes: give base another width")
    layers = _of_paths(stacked or {}, shapes)
    for path, shape in shapes.items():
        num = layers.get(path, 0)
        if len(shape) != len(base_shapes[path]) or shape[:num] != base_shapes[path][:num]:
            raise ValueError(f"{path} differs in more than width: its shapes are {shape} and {base_shapes[path]}")
    shapes, base_shapes = ({path: s[layers.get(path, 0) :] for path, s in x.items()} for x in (shapes, base_shapes))
    declared = _of_paths(contracted or {}, shapes)
    found = []
    for path, shape in shapes.items():
        grows = [size != other for size, other in zip(shape, base_shapes[path], strict=True)]
        split = declared[path] if path in declared else _num_contracted(path, shapes, grows)
        is_vector = len(shape) < 2 or bool(VECTOR.search(path))
        kind = "vector" if is_vector else KINDS[any(grows[:split]), any(grows[split:])]
        fan_in, base_fan_in = math.prod(shape[:split]), math.prod(base_shapes[path][:split])
        found.append(_rules(kind, fan_in, base_fan_in if relative else 1))
    return Tensors(*(jax.tree.unflatten(jax.tree.structure(params), column) for column in zip(*found, strict=True)))


def initialize(tensors: Tensors, params: Any, key: jax.Array) -> Any:
    """Draws the initial values of muP: N(0, init_std^2); vectors stay as they are in ``params``."""
    leaves, tree = jax.tree.flatten(params)
    keys = tree.unflatten(list(jax.random.split(key, len(leaves))))

    def draw(kind, std, p, key):
        return p if kind == "vector" else std * jax.random.normal(key, p.shape, p.dtype)

    return jax.tree.map(draw, tensors.kind, tensors.init_std, params, keys)


def scale_updates(multipliers: Any) -> optax.GradientTransformation:
    """Multiplies every update by its multiplier: what muP changes of a learned optimizer, or of Adam.

    The table is that of optimizers whose steps do not grow with the gradient. SGD has another.

    ``optax.chain(optax.adam(rate), scale_updates(m))`` is muAdam, and a ``small_fc`` with
    hidden=32 and step_multiplier=0.01 in place of Adam is muLO. A decoupled weight decay
    comes after it in the chain: its rate does not change with width.

    Args:
      multipliers: a tree like the parameters, e.g. ``infer(...).multiplier``.

    Raises:
      ValueError: from ``update``, naming the first path at which the updates differ.
    """

    def scale(updates, params):
        del params
        _check_same_paths(updates, multipliers, "updates", "multipliers")
        return jax.tree.map(lambda u, m: u * jnp.asarray(m, u.dtype), updates, multipliers)

    return optax.stateless(scale)


def _rules(kind: str, fan_in: int, base_fan_in: int) -> Tensors:
    """The table of ``infer``, of one tensor."""
    shrinks = base_fan_in / fan_in
    return Tensors(
        kind=kind,
        fan_in=fan_in,
        multiplier=shrinks if kind == "hidden" else 1.0,
        init_std=0.0 if kind == "output" else fan_in**-0.5,
        forward=shrinks if kind == "output" else 1.0,
    )


def _num_contracted(path: str, shapes: dict[str, tuple[int, ...]], grows: list[bool]) -> int:
    """How many of the first axes of a tensor its layer contracts, by the layout of flax."""
    shape = shapes[path]
    if len(shape) < 2 or VECTOR.search(path) or LOOKED_UP.search(path):
        return 0
    remedy = "say how many with contracted=, or with stacked= how many first axes count layers"
    if KERNEL.search(path):
        bias = shapes.get(KERNEL.sub(r"\1bias", path))
        if bias and shape[-len(bias) :] == bias:
            return len(shape) - len(bias)
        if bias:
            raise ValueError(f"{path}: which axes of {shape} are contracted, beside a bias of {bias}? {remedy}")
        module = path.split("/")[-2:][0]
        if len(shape) == 3 and module in ATTENTION:
            return ATTENTION[module]
    if any(grows[:-2]):  # then the tensor is no (..., in, out)
        growing = [axis for axis, g in enumerate(grows) if g]
        raise ValueError(f"{path}: which axes of {shape} are contracted, where axes {growing} grow? {remedy}")
    return len(shape) - 1


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shapes by path. flax.nnx calls the array of each parameter its value: left out."""
    paths = {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in jax.tree.leaves_with_path(tree)}
    return {path.removesuffix("/value"): tuple(x.shape) for path, x in paths.items()}


def _of_paths(numbers: Mapping[str, int], shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """The number of each path that an expression is found in; the first one counts."""
    result = {}
    for expression, number in numbers.items():
        paths = [path for path in shapes if re.search(expression, path)]
        if not paths:
            raise ValueError(f"{expression!r} is found in no path; the paths are {', '.join(shapes)}")
        for path in paths:
            if not 0 <= number <= len(shapes[path]):
                raise ValueError(f"{path} has {len(shapes[path])} axes, {expression!r} says {number} of them")
            result.setdefault(path, number)
    return result


def _check_same_paths(ours: Any, theirs: Any, our_name: str, their_name: str) -> None:
    """Raises a ValueError naming the first path that only one of two trees has."""
    if jax.tree.structure(ours) == jax.tree.structure(theirs):
        return
    paths = [[jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(tree)] for tree in (ours, theirs)]
    for path in [*paths[0], *paths[1]]:
        for name, known in zip((our_name, their_name), paths, strict=True):
            if path not in known:
                raise ValueError(f"{our_name} and {their_name} are different trees: {name} lack {path}")
    raise ValueError(
        f"{our_name} and {their_name} hold the same leaves in different containers: "
        f"{jax.tree.structure(ours)} and {jax.tree.structure(theirs)}"
    )
