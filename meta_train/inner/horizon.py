"""How long an episode is, in inner steps."""

import dataclasses

import jax
import jax.numpy as jnp

from metaopt.core import Key
from metaopt.errors import UserError, unknown

DISTRIBUTIONS = ("log_uniform", "uniform")


@dataclasses.dataclass(frozen=True)
class Horizon:
    """Random lengths between two bounds, rounded to a multiple of the window W.

    With u ~ U[0, 1] and bounds a, b:

        log_uniform   W round(a (b / a)^u / W)
        uniform       W round((a + (b - a) u) / W)

    As a curriculum b grows from a, by the same factor every outer step:
    b(s) = a (b / a)^min(1, s / growth).
    """

    shortest: int = 100  # inner steps; with longest inclusive but for the rounding
    longest: int = 1000  # equal bounds make a constant length
    distribution: str = "log_uniform"  # log_uniform or uniform
    growth: int = 0  # outer steps until longest is reached; 0 is at once

    def __post_init__(self):
        if not 1 <= self.shortest <= self.longest:
            raise UserError(
                f"episodes need 1 <= shortest <= longest inner steps, got {self.shortest} and {self.longest}"
            )
        if self.distribution not in DISTRIBUTIONS:
            raise unknown("distribution of horizons", self.distribution, DISTRIBUTIONS)
        if self.growth < 0:
            raise UserError(f"growth is a number of outer steps, got {self.growth}")

    def check_window(self, window: int) -> None:
        """Raises UserError for a window longer than the shortest episode."""
        if window > self.shortest:
            raise UserError(
                f"a window cannot be longer than the shortest episode: set shortest={window} or more, or window="
                f"{self.shortest} or less, got window {window}, shortest {self.shortest}, longest {self.longest}"
            )

    def bound(self, window: int) -> int:
        """The longest episode there can be after rounding, in inner steps."""
        return window * max(1, round(self.longest / window))

    def sample(self, key: Key, window: int, outer_step: jax.Array | int = 0) -> jax.Array:
        """() int32, inner steps of an episode that begins at ``outer_step``."""
        longest = jnp.float32(self.longest)
        if self.growth:
            longest = self.shortest * (self.longest / self.shortest) ** jnp.minimum(1.0, outer_step / self.growth)
        u = jax.random.uniform(key)
        if self.distribution == "uniform":
            length = self.shortest + (longest - self.shortest) * u
        else:
            length = self.shortest * (longest / self.shortest) ** u
        return window * jnp.maximum(1, jnp.round(length / window)).astype(jnp.int32)
