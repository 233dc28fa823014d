"""muP: step sizes, learned or tuned, that carry over to wider networks.

tensors = mup.infer(jax.eval_shape(wide_init, key), jax.eval_shape(narrow_init, key))
params = mup.initialize(tensors, wide_init(key), key)
tx = optax.chain(metaopt.load(name), mup.scale_updates(tensors.multiplier))

Three things have to be done in the network: multiply the output of an output layer, bias included,
by its ``forward``; divide the logits of a tied embedding, which counts as input, by the width; divide
the logits of attention by the size of a head instead of its square root.

Source: Therien et al., "muLO: Compute-efficient meta-generalization of learned optimizers",
arXiv:2406.00153, equation 3; Yang et al., "Tensor programs V", arXiv:2203.03466, table 8.
"""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metaopt.core import Key, Params, PyTree

# Patterns of paths and conventions of shapes in flax.
VECTOR = re.compile(r"(^|/)(bias|scale)$")
LOOKED_UP = re.compile(r"embedding$")  # rows are looked up or added: no axis is contracted
KERNEL = re.compile(r"(^|/)kernel$")
ATTENTION = {"query": 1, "key": 1, "value": 1, "out": 2}  # number of axes that kernels of rank 3 contract

# The kind of a tensor by whether its fan-in grows with width, and whether its fan-out does.
KINDS = {(False, False): "vector", (False, True): "input", (True, True): "hidden", (True, False): "output"}


class Tensors(NamedTuple):
    """The rules of muP for every tensor: trees of Python values like the parameters."""

    kind: PyTree  # "input", "hidden", "output" or "vector"
    fan_in: PyTree  # product of the contracted axes; 1 for lookups and vectors
    multiplier: PyTree  # factor of the update
    init_std: PyTree  # standard deviation of the initial values; 0 for output tensors
    forward: PyTree  # factor of the layer's output; 1 except for output tensors


def infer(
    params: Params,
    base: Params,
    *,
    relative: bool = False,
    stacked: Mapping[str, int] | None = None,
    contracted: Mapping[str, int] | None = None,
) -> Tensors:
    """Infers the rules of muP for a network from the shapes of its parameters at two widths.

    An axis whose size differs grows with width. With n the fan-in, the product of the axes that a
    tensor's layer contracts,

        kind     what grows with width        multiplier   init_std     forward
        input    the fan-out                  1            n^(-1/2)     1
        hidden   the fan-in and the fan-out   1 / n        n^(-1/2)     1
        output   the fan-in                   1            0            1 / n
        vector   nothing; also any tensor     1            n^(-1/2)     1
                 of one axis, bias or scale

    The contracted axes follow flax's layout. A kernel beside a bias contracts all axes but the last
    ones, as many as the bias has. Without a bias, query, key and value kernels of attention (width,
    heads, head) contract the first, its out kernels (heads, head, width) the first two, and other
    kernels, (in, out) or (height, width, in, out), all but the last. Embeddings, biases and scales
    contract none. A layout with the outputs first, such as Equinox's, has to be transposed.

    The fan-in of an attention's out kernel is heads * head. (The published code takes head alone,
    the second axis, which is right up to a constant only if the number of heads is fixed.)

    Args:
      params: parameters of the network to train, or their shapes from ``jax.eval_shape``.
      base: the same for the network at another width. Only the width may differ.
      relative: whether 1 / n becomes n_base / n, which is 1 at the width of ``base``, as needed
        for a learning rate that was tuned there. muLO was meta-trained with 1 / n.
      stacked: number of leading axes that count layers (``nn.scan``) or experts instead of width,
        by a regular expression that is searched in paths such as "layers/Dense_0/kernel". If it is
        forgotten, a bias beside the kernel reveals it; without a bias, a stack of matrices would be
        taken for a convolution.
      contracted: number of contracted axes after the stacked ones, also by regular expression,
        for tensors that do not follow flax's layout.

    Returns:
      The rules for every tensor.

    Raises:
      ValueError: naming the path, if the trees differ in more than sizes, if nothing grows, or if
        the contracted axes cannot be inferred; naming the expression, if it is found in no path.
    """
    _check_same_paths(params, base, "params", "base")
    shapes, base_shapes = _shapes(params), _shapes(base)
    if shapes == base_shapes:
        raise ValueError("params and base have the same shapes: give base another width")
    num_stacked = _by_path(stacked or {}, shapes)
    for path, shape in shapes.items():
        num = num_stacked.get(path, 0)
        if len(shape) != len(base_shapes[path]) or shape[:num] != base_shapes[path][:num]:
            raise ValueError(f"{path} differs in more than width: its shapes are {shape} and {base_shapes[path]}")
    shapes, base_shapes = (
        {path: shape[num_stacked.get(path, 0) :] for path, shape in x.items()} for x in (shapes, base_shapes)
    )
    num_contracted = _by_path(contracted or {}, shapes)
    rules = []
    for path, shape in shapes.items():
        grows = [size != other for size, other in zip(shape, base_shapes[path], strict=True)]
        num = num_contracted[path] if path in num_contracted else _infer_contracted(path, shapes, grows)
        is_vector = len(shape) < 2 or bool(VECTOR.search(path))
        kind = "vector" if is_vector else KINDS[any(grows[:num]), any(grows[num:])]
        fan_in, base_fan_in = math.prod(shape[:num]), math.prod(base_shapes[path][:num])
        rules.append(_rules(kind, fan_in, base_fan_in if relative else 1))
    return Tensors(*(jax.tree.unflatten(jax.tree.structure(params), column) for column in zip(*rules, strict=True)))


def initialize(tensors: Tensors, params: Params, key: Key) -> Params:
    """Draws initial values from N(0, init_std^2); vectors keep their values in ``params``.

    Args:
      tensors: rules as ``infer`` returns them.
      params: parameters, whose shapes, dtypes and vectors are kept.
      key: random key.
    """
    leaves, tree = jax.tree.flatten(params)
    keys = tree.unflatten(list(jax.random.split(key, len(leaves))))

    def draw(kind: str, std: float, p: jax.Array, key: Key) -> jax.Array:
        return p if kind == "vector" else std * jax.random.normal(key, p.shape, p.dtype)

    return jax.tree.map(draw, tensors.kind, tensors.init_std, params, keys)


def scale_updates(multipliers: PyTree) -> optax.GradientTransformation:
    """Multiplies every update by its multiplier, which turns a learned optimizer, or Adam, into its muP.

    The multipliers of ``infer`` are for optimizers whose steps do not grow with the gradient; those
    for SGD are different.

    ``optax.chain(optax.adam(rate), scale_updates(m))`` is muAdam, and a ``small_fc`` with
    hidden=32 and step_multiplier=0.01 in place of Adam is muLO. A decoupled weight decay
    belongs after it in the chain, because its rate does not change with width.

    Args:
      multipliers: tree of factors like the parameters, e.g. ``infer(...).multiplier``.

    Raises:
      ValueError: from ``update``, naming the first path at which the updates differ.
    """

    def scale(updates: Params, params: Params) -> Params:
        del params
        _check_same_paths(updates, multipliers, "updates", "multipliers")
        return jax.tree.map(lambda u, m: u * jnp.asarray(m, u.dtype), updates, multipliers)

    return optax.stateless(scale)


def _rules(kind: str, fan_in: int, base_fan_in: int) -> Tensors:
    """The row of the table in ``infer`` for one tensor."""
    ratio = base_fan_in / fan_in
    return Tensors(
        kind=kind,
        fan_in=fan_in,
        multiplier=ratio if kind == "hidden" else 1.0,
        init_std=0.0 if kind == "output" else fan_in**-0.5,
        forward=ratio if kind == "output" else 1.0,
    )


def _infer_contracted(path: str, shapes: dict[str, tuple[int, ...]], grows: list[bool]) -> int:
    """The number of leading axes of a tensor that its layer contracts in the layout of flax."""
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
    if any(grows[:-2]):  # then the layout is not (..., in, out)
        growing = [axis for axis, g in enumerate(grows) if g]
        raise ValueError(f"{path}: which axes of {shape} are contracted, where axes {growing} grow? {remedy}")
    return len(shape) - 1


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """Shapes by path, without the "/value" that flax.nnx appends to the path of each parameter."""
    paths = {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in jax.tree.leaves_with_path(tree)}
    return {path.removesuffix("/value"): tuple(x.shape) for path, x in paths.items()}


def _by_path(numbers: Mapping[str, int], shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """The number for each path in which a regular expression is found; the first expression counts."""
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


def _check_same_paths(ours: PyTree, theirs: PyTree, our_name: str, their_name: str) -> None:
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
