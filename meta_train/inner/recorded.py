"""The recorded loss, from which the meta-objective is computed, in one of three forms.

    log      log(0.01 + r),  r = loss / first loss, at most 2
    linear   r
    raw      the loss itself, which may be negative, e.g. the negative of a return

The first loss, before any step, does not depend on theta. Dividing by it makes tasks comparable;
it requires losses above zero. A raw loss has no upper limit: a sample whose loss is not finite
is not valid.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

LOG_FLOOR = 1e-2  # added before the logarithm: smaller relative losses are mostly noise of the batch
WORST = 2.0  # relative losses that are larger or not finite are replaced by this


class Form(NamedTuple):
    """One way to record a loss.

    Attributes:
      record: ``(loss, first_loss) -> ()``, the recorded loss.
      relative: whether it depends on ``first_loss``, the loss before the first step.
    """

    record: Callable[[jax.Array, jax.Array], jax.Array]
    relative: bool = True

    def worst(self) -> float:
        """The value that replaces recorded losses that are larger or not finite."""
        return float(self.record(jnp.float32(WORST), jnp.float32(1.0))) if self.relative else float("inf")


def _linear(loss: jax.Array, first_loss: jax.Array) -> jax.Array:
    return jnp.maximum(loss / first_loss, 0.0)


def _log(loss: jax.Array, first_loss: jax.Array) -> jax.Array:
    return jnp.log(_linear(loss, first_loss) + LOG_FLOOR)


def _raw(loss: jax.Array, first_loss: jax.Array) -> jax.Array:
    del first_loss
    return loss


FORMS = {"linear": Form(_linear), "log": Form(_log), "raw": Form(_raw, relative=False)}
