"""How long an episode is, in inner steps."""

import dataclasses

import jax
import jax.numpy as jnp

from metaopt.errors import UserError


@dataclasses.dataclass(frozen=True)
class LogUniform:
    """Lengths log-uniform between two bounds, rounded to a multiple.

    With u ~ U[0, 1]:  length = multiple * round(shortest * (longest / shortest)^u / multiple)

    Attributes:
      shortest, longest: inner steps, inclusive; equal bounds make a constant.
      multiple: the window, so that episodes end where windows do.
    """

    shortest: int
    longest: int
    multiple: int = 1

    def __post_init__(self):
        if not 1 <= self.multiple <= self.shortest <= self.longest:
            raise UserError(
                "a horizon needs 1 <= window <= shortest <= longest inner steps, "
                f"got window {self.multiple}, shortest {self.shortest}, longest {self.longest}"
            )

    def sample(self, key: jax.Array) -> jax.Array:
        """() int32, inner steps."""
        length = self.shortest * (self.longest / self.shortest) ** jax.random.uniform(key)
        return self.multiple * jnp.maximum(1, jnp.round(length / self.multiple)).astype(jnp.int32)
