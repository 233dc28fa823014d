"""Which leaves of a tree of parameters are trained: real tensors with at least one element, in float32.

A complex tensor is two of them, its real and its imaginary part, as everywhere in Optax. What cannot
be trained stays as it is and has no state: integers, keys, functions, tensors without elements.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.core import Params, PyTree
from metaopt.optimizers.common.stacking import Stacking

PARTS = ("real part", "imaginary part")


class Parameters:
    """Translates between a user's tree of parameters and what a rule sees.

    A rule sees the user's tree, with None in place of what is not trained. If any tensor is complex it
    sees a dict of two such trees by the names in PARTS, the second with None for what is real. Where there
    are stacks, see ``stacking``, it sees that as a ``Stacked`` tree.

    Args:
      params: the user's tree.
      stacks: whether many small tensors of one shape are stacked.

    Attributes:
      leaves: the leaves of the user's tree.
      has_complex: whether any is complex.
    """

    def __init__(self, params: Params, stacks: bool = False):
        self.leaves = jax.tree.leaves(params)
        self.has_complex = any(map(_is_complex, self.leaves))
        self._structure = jax.tree.structure(params)
        shapes = self._to_parts(self.leaves, real=_shape, imaginary=_shape)
        self._stacking = Stacking(shapes, stacks=stacks)

    def to_rule(self, values: Sequence[Any]) -> PyTree:
        """What the rule sees of one array for each leaf."""
        return self._stacking.stack(self._to_parts(values, real=_real, imaginary=_imaginary))

    def zeros(self) -> PyTree:
        """What the rule sees of zeros."""
        return self._stacking.zeros()

    def to_user(self, tree: PyTree, fill: Callable[[Any], Any]) -> PyTree:
        """The inverse of ``to_rule``, in the dtypes of the parameters; ``fill(p)`` for what is not trained."""
        tree = self._stacking.unstack(tree)
        parts = [tree[part] for part in PARTS] if self.has_complex else [tree, tree]
        real, imaginary = map(self._structure.flatten_up_to, parts)

        def join(p: Any, re: Any, im: Any) -> Any:
            if not is_trained(p):
                return fill(p)
            return (jax.lax.complex(re, im) if _is_complex(p) else re).astype(p.dtype)

        return self._structure.unflatten(list(map(join, self.leaves, real, imaginary)))

    def _to_parts(self, values: Sequence[Any], real: Callable[[Any], Any], imaginary: Callable[[Any], Any]) -> PyTree:
        """The tree, or the dict of two, with functions of the values in it."""
        pairs = list(zip(self.leaves, values, strict=True))
        of_real = self._structure.unflatten([real(x) if is_trained(p) else None for p, x in pairs])
        if not self.has_complex:
            return of_real
        of_imaginary = self._structure.unflatten([imaginary(x) if _is_complex(p) else None for p, x in pairs])
        return {PARTS[0]: of_real, PARTS[1]: of_imaginary}


def names(path: tuple) -> tuple[str, ...]:
    """The names on the path of a tensor that a rule sees, as they are in the user's tree."""
    found = tuple(jax.tree_util.keystr((entry,), simple=True) for entry in path)
    return found[1:] if found[:1] in ((PARTS[0],), (PARTS[1],)) else found


def zeros(params: Params, stacks: bool = False) -> PyTree:
    """What a rule's ``init`` sees of parameters, for a state depends on nothing but shapes.

    Raises:
      ValueError: naming the first leaf that is no array.
    """
    for path, p in jax.tree.leaves_with_path(params):
        if not _is_array(p):
            raise ValueError(_no_array("params", path, p))
    return Parameters(params, stacks).zeros()


def match_gradients(grads: PyTree, params: Params) -> list[Any]:
    """The gradient of each leaf of ``params``; None where it has none and therefore stays.

    Raises:
      ValueError: naming the first path at which the trees differ, or whose gradient cannot be used.
    """
    with_path = jax.tree.leaves_with_path(grads, is_leaf=_is_none)
    nones = {path for path, g in with_path if g is None}
    given = {path: g for path, g in with_path if g is not None}
    matched = []
    for path, p in jax.tree.leaves_with_path(params):
        if path in given:
            matched.append(_check_gradient(path, p, given.pop(path)))
        elif any(path[:n] in nones for n in range(len(path) + 1)):  # None may stand for a whole layer
            matched.append(None)
        else:
            raise ValueError(f"grads and params differ: params{_text(path)} has no gradient")
    for path in given:
        raise ValueError(f"grads and params differ: grads{_text(path)} has no parameter")
    ours, theirs = jax.tree.structure(grads), jax.tree.structure(params)
    if not nones and ours != theirs:
        raise ValueError(f"grads and params hold the same leaves in different containers: {ours} and {theirs}")
    return matched


def unchanged(p: Any) -> Any:
    """The update of a parameter that stays: zeros; None for what cannot be added to, as keys and functions."""
    is_number = _is_array(p) and (_is_a(p, jnp.number) or _is_a(p, jnp.bool_))
    return jnp.zeros_like(p) if is_number else None


def is_trained(p: Any) -> bool:
    """Whether a leaf is seen by the rule, whatever its gradient."""
    return _is_array(p) and _is_a(p, jnp.inexact) and p.size > 0


def _check_gradient(path: tuple, p: Any, g: Any) -> Any:
    """The gradient of one leaf, None for float0; raises a ValueError if it cannot be used."""
    for tree, x in (("params", p), ("grads", g)):
        if not _is_array(x):
            raise ValueError(_no_array(tree, path, x))
    if g.shape != p.shape:
        raise ValueError(f"grads and params differ at {_text(path) or 'the root'}: shapes {g.shape} and {p.shape}")
    if not _is_a(p, jnp.inexact):
        if g.dtype == jax.dtypes.float0:  # what jax.grad(allow_int=True) gives for an integer
            return None
        raise ValueError(
            f"params{_text(path)} is {p.dtype}, and only floating and complex tensors are trained: its gradient must "
            f"be None, not {g.dtype.name}; or leave it out with optax.masked"
        )
    if g.dtype == jax.dtypes.float0 or (_is_a(g, jnp.complexfloating) and not _is_a(p, jnp.complexfloating)):
        kind = "float0" if g.dtype == jax.dtypes.float0 else g.dtype.name
        raise ValueError(f"params{_text(path)} is {p.dtype} and its gradient {kind}: it must be real, or None")
    return g


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def _is_a(x: Any, kind: Any) -> bool:
    return jnp.issubdtype(x.dtype, kind)


def _is_complex(p: Any) -> bool:
    return is_trained(p) and _is_a(p, jnp.complexfloating)


def _is_none(x: Any) -> bool:
    return x is None


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, jnp.float32)


def _real(x: Any) -> jax.Array:
    return jnp.asarray(jnp.real(x), jnp.float32)


def _imaginary(x: Any) -> jax.Array:
    return jnp.asarray(jnp.imag(x), jnp.float32)


def _text(path: tuple) -> str:
    return jax.tree_util.keystr(path)


def _no_array(tree: str, path: tuple, x: Any) -> str:
    return (
        f"{tree}{_text(path)} is no array but {type(x).__name__}: pass a tree of arrays, e.g. "
        "equinox.filter(model, equinox.is_array) or nnx.state(model, nnx.Param), and numbers as jnp.asarray(number)"
    )
