"""From an update rule in float32 to a well-behaved Optax transformation.

All families use ``transformation``, so checks, dtypes and the wording of errors exist once.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metaopt.core import Params, PyTree
from metaopt.optimizers.common.gradients import LARGEST_SQUARED, zero_unusable
from metaopt.optimizers.common.parameters import Parameters, match_gradients, unchanged, zeros


def transformation(
    init: Callable[[Params], Any],
    update: Callable[..., tuple[Params, Any]],
    *,
    name: str,
    needs_value: bool = False,
    reads: Sequence[str] = (),
    largest_gradient: float = LARGEST_SQUARED,
    stacks: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Wraps a float32 update rule as an Optax transformation.

    A rule sees real tensors with at least one element. A complex tensor is two of them, as everywhere in
    Optax; what cannot be trained, and a parameter whose gradient is None or float0, stays where it is. An
    entry of a gradient that is NaN, infinite or larger than ``largest_gradient`` counts as zero.

    Args:
      init: ``params -> state``. It is given float32 zeros of the shapes of the
        parameters, so it can depend on nothing else.
      update: ``(grads, state, params, value, **reads) -> (updates, state)`` on
        float32 trees; ``updates`` are added to the parameters.
      name: the family's name, for error messages.
      needs_value: whether the rule reads the current loss.
      reads: further keywords of ``update`` that are passed on; None where not given.
      largest_gradient: the largest entry that the rule can work with; infinity for a rule that has
        its own way with all of them.
      stacks: whether the rule works with trees that are ``Stacked``, and so sees many small tensors of one
        shape as one.

    Returns:
      A transformation that keeps its accumulators in float32 and returns updates
      in the dtype of each parameter. It ignores extra arguments it does not know,
      so it composes with the rest of Optax.

    Raises:
      ValueError: naming the leaf, from ``init`` for one that is no array, from ``update`` where
        ``grads`` and ``params`` differ or a gradient cannot be used; from ``update``, if ``params`` or
        a needed ``value`` is missing, or ``value`` is not a number.
    """

    def init_fn(params: Params) -> Any:
        return _narrow(init(zeros(params, stacks)))

    def update_fn(updates, state, params=None, *, value=None, **extra_args):
        if params is None:
            raise ValueError(f"{name} needs the parameters: call update(grads, state, params)")
        if needs_value:
            _check_value(name, value)
        parameters = Parameters(params, stacks)
        grads = match_gradients(updates, params)
        given = [unchanged(p) if g is None else g for p, g in zip(parameters.leaves, grads, strict=True)]
        rule_grads = jax.tree.map(lambda g: zero_unusable(g, largest_gradient), parameters.to_rule(given))
        value = None if value is None else jnp.asarray(value, jnp.float32)
        extra = {keyword: _translate(name, keyword, extra_args.get(keyword), parameters) for keyword in reads}
        rule_updates, new_state = update(rule_grads, state, parameters.to_rule(parameters.leaves), value, **extra)
        # Where jax_enable_x64 is on, constants would widen the state from step to step.
        state = jax.tree.map(lambda x, y: x.astype(y.dtype), new_state, state)
        moved, structure = parameters.to_user(rule_updates, unchanged), jax.tree.structure(params)
        pairs = zip(parameters.leaves, grads, structure.flatten_up_to(moved), strict=True)
        return structure.unflatten([unchanged(p) if g is None else u for p, g, u in pairs]), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check_value(name: str, value: Any) -> None:
    if value is None:
        raise ValueError(
            f"{name} needs the current loss: call update(grads, state, params, value=loss). If you do, a wrapper drops "
            "it: optax.chain does not pass it to what is no optax.GradientTransformationExtraArgs, such as "
            "optax.MultiSteps(...).gradient_transformation(); make one of it, of its init and update"
        )
    if np.shape(value) != ():
        raise ValueError(f"{name} needs the loss as one number, and value has shape {np.shape(value)}: take its mean")


def _translate(name: str, keyword: str, argument: Any, parameters: Parameters) -> Any:
    """An extra argument as the rule understands it."""
    if keyword == "value_fn" and argument is not None:
        return lambda tree: argument(parameters.to_user(tree, fill=lambda p: p))
    if parameters.has_complex and keyword in ("activations", "noise") and argument is not None:
        raise ValueError(f"{name} does not take {keyword}= together with complex parameters")
    return argument


def _narrow(tree: PyTree) -> PyTree:
    """A tree with float64, the dtype of constants where jax_enable_x64 is on, cast to float32."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.float64 else x, tree)
