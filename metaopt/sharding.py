"""The sharding of an optimizer's state, given that of the parameters."""

from typing import Any

import jax
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from metaopt.core import Params, PyTree
from metaopt.optimizers.common.stacking import Stacked


def state_sharding(tx: optax.GradientTransformation, params: Params) -> PyTree:
    """The sharding of ``tx.init(params)``, in which the state of each parameter is sharded like it.

        shardings = state_sharding(tx, params)
        state = jax.jit(tx.init, out_shardings=shardings)(params)

    An axis of an array in the state is sharded like the parameter's axis if it has the same length.
    Axes that were averaged over, further axes, and arrays that belong to no parameter are replicated
    on every device. Eight or more small tensors of one shape, which a learned optimizer keeps in one array,
    are sharded like each of them where they are sharded alike. A jitted step keeps parameters and state
    in place if ``out_shardings`` names the shardings of both.

    Args:
      tx: any Optax transformation whose state holds trees like the parameters.
      params: arrays, or ``jax.ShapeDtypeStruct``s, with a NamedSharding each.

    Returns:
      A tree of NamedShardings like the state.

    Raises:
      ValueError: naming the first parameter without a NamedSharding; for a mesh with
        explicit axes, which is what ``jax.make_mesh`` makes unless told otherwise.
    """
    for path, p in jax.tree.leaves_with_path(params):
        if not isinstance(getattr(p, "sharding", None), NamedSharding):
            raise ValueError(f"params{jax.tree_util.keystr(path)} has no NamedSharding: place it with jax.device_put")
    shardings = [p.sharding for p in jax.tree.leaves(params)]
    if not shardings:
        raise ValueError("there are no parameters")
    mesh = shardings[0].mesh
    if AxisType.Explicit in mesh.axis_types:
        raise ValueError(
            "learned optimizers need a mesh whose axes are Auto: pass axis_types=(AxisType.Auto, ...) to jax.make_mesh"
        )
    state = jax.eval_shape(tx.init, params)

    def is_known(subtree: PyTree) -> bool:
        return isinstance(subtree, Stacked) or _is_like(params, subtree)

    def shard(subtree: PyTree) -> PyTree:
        if isinstance(subtree, Stacked):
            stacks = {name: _like_tensors(params, name, x) for name, x in subtree.stacks.items()}
            return Stacked(shard_all(subtree.alone), stacks)
        if _is_like(params, subtree):
            return jax.tree.map(_like_parameter, params, subtree)
        return jax.tree.map(lambda x: NamedSharding(mesh, P()), subtree)

    def shard_all(tree: PyTree) -> PyTree:
        return jax.tree.map(shard, tree, is_leaf=is_known)

    return shard_all(state)


def _is_like(params: PyTree, tree: PyTree) -> bool:
    """Whether a tree has, in place of every parameter, a subtree of arrays of its shape or of averages over it."""
    try:
        subtrees = jax.tree.structure(params).flatten_up_to(tree)
    except (ValueError, TypeError):
        return False
    if subtrees and all(not hasattr(subtree, "ndim") and _is_like(params, subtree) for subtree in subtrees):
        return False  # there are as many decays as parameters: a tuple of trees like the parameters
    pairs = zip(jax.tree.leaves(params), subtrees, strict=True)
    return all(_fits(p, x) for p, subtree in pairs for x in jax.tree.leaves(subtree))


def _fits(p: Any, x: Any) -> bool:
    """Whether x has the axes of p, each of the same size or 1, and possibly more."""
    return x.ndim >= p.ndim and all(n in (1, m) for n, m in zip(x.shape, p.shape, strict=False))


def _like_parameter(p: Any, subtree: PyTree) -> PyTree:
    """Shardings of the arrays that belong to a parameter."""

    def sharding(x: Any) -> NamedSharding:
        axes = zip(p.shape, x.shape, p.sharding.spec, strict=False)  # a spec may leave out trailing axes
        return NamedSharding(p.sharding.mesh, P(*(name if m == n else None for m, n, name in axes)))

    return jax.tree.map(sharding, subtree)


def _like_tensors(params: Params, name: str, x: Any) -> NamedSharding:
    """The sharding of an array in the state of a stack, whose name has the shape of its tensors."""
    alike = [p for p in jax.tree.leaves(params) if str(p.shape) in name]
    tensors, sharding = alike[0], alike[0].sharding
    if not all(p.sharding.is_equivalent_to(sharding, p.ndim) for p in alike):
        return NamedSharding(sharding.mesh, P())
    spec = NamedSharding(sharding.mesh, P(None, *sharding.spec))
    return _like_parameter(jax.ShapeDtypeStruct((x.shape[0], *tensors.shape), x.dtype, sharding=spec), x)
