"""How long an episode is, in inner steps."""

import dataclasses

import jax
import jax.numpy as jnp

from metaopt.errors import UserError, unknown

DISTRIBUTIONS = ("log_uniform", "uniform")


@dataclasses.dataclass(frozen=True)
class Horizon:
    """Random lengths between two bounds, rounded to a multiple.

    With u ~ U[0, 1] and bounds a, b:

        log_uniform   multiple * round(a (b / a)^u / multiple)
        uniform       multiple * round((a + (b - a) u) / multiple)

    As a curriculum b grows from a, by the same factor every outer step:
    b(s) = a (b / a)^min(1, s / growth).

    Attributes:
      shortest, longest: inner steps, inclusive but for the rounding; equal bounds make
        a constant.
      multiple: the window, so that episodes end where windows do.
      distribution: "log_uniform" or "uniform".
      growth: outer steps until ``longest`` is reached; 0 is at once.
    """

    shortest: int
    longest: int
    multiple: int = 1
    distribution: str = "log_uniform"
    growth: int = 0

    def __post_init__(self):
        if not 1 <= self.multiple <= self.shortest <= self.longest:
            raise UserError(
                "a horizon needs 1 <= window <= shortest <= longest inner steps, "
                f"got window {self.multiple}, shortest {self.shortest}, longest {self.longest}"
            )
        if self.distribution not in DISTRIBUTIONS:
            raise unknown("distribution of horizons", self.distribution, DISTRIBUTIONS)
        if self.growth < 0:
            raise UserError(f"growth is a number of outer steps, got {self.growth}")

    @property
    def bound(self) -> int:
        """The longest episode there can be after rounding, in inner steps."""
        return self.multiple * max(1, round(self.longest / self.multiple))

    def sample(self, key: jax.Array, outer_step: jax.Array | int = 0) -> jax.Array:
        """() int32, inner steps of an episode that begins at ``outer_step``."""
        longest = jnp.float32(self.longest)
        if self.growth:
            longest = self.shortest * (self.longest / self.shortest) ** jnp.minimum(1.0, outer_step / self.growth)
        u = jax.random.uniform(key)
        if self.distribution == "uniform":
            length = self.shortest + (longest - self.shortest) * u
        else:
            length = self.shortest * (longest / self.shortest) ** u
        return self.multiple * jnp.maximum(1, jnp.round(length / self.multiple)).astype(jnp.int32)
