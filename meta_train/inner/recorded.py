"""The recorded loss: what the meta-objective is made of, in one of three forms.

    log      log(0.01 + r),  r = loss / loss of the start, at most 2
    linear   r
    raw      the loss as it is, also negative: a return is a negative loss

The start does not depend on theta, so dividing by its loss changes no sign and makes tasks
comparable; it asks for losses above zero. A raw loss has no largest value: a member whose loss is
not finite is left out.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

LOG_FLOOR = 1e-2  # relative losses below this count as equal: noise of a batch near zero
WORST = 2.0  # relative losses above this, or not finite, count as this


class Form(NamedTuple):
    """One way to record a loss.

    Attributes:
      record: ``(loss, first_loss) -> ()``.
      relative: whether it looks at ``first_loss``, the loss of the start.
    """

    record: Callable[[jax.Array, jax.Array], jax.Array]
    relative: bool = True

    def worst(self) -> float:
        """What recorded losses above it, or not finite, count as."""
        return float(self.record(jnp.float32(WORST), jnp.float32(1.0))) if self.relative else float("inf")


def _linear(loss: jax.Array, first_loss: jax.Array) -> jax.Array:
    return jnp.maximum(loss / first_loss, 0.0)


def _log(loss: jax.Array, first_loss: jax.Array) -> jax.Array:
    return jnp.log(_linear(loss, first_loss) + LOG_FLOOR)


def _raw(loss: jax.Array, first_loss: jax.Array) -> jax.Array:
    del first_loss
    return loss


FORMS = {"linear": Form(_linear), "log": Form(_log), "raw": Form(_raw, relative=False)}
