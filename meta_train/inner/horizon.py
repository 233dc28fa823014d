"""The length of an episode in inner steps."""

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

    In a curriculum the upper bound grows from a to b by the same factor in every outer step s:
    b(s) = a (b / a)^min(1, s / growth).
    """

    shortest: int = 100  # lower bound in inner steps, inclusive before rounding
    longest: int = 1000  # upper bound in inner steps, inclusive before rounding; equal bounds give a constant length
    distribution: str = "log_uniform"  # distribution of lengths: log_uniform or uniform
    growth: int = 0  # outer steps until the upper bound is longest; 0 is no curriculum

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.longest:
            raise UserError(
                f"episodes need 1 <= shortest <= longest inner steps, got {self.shortest} and {self.longest}"
            )
        if self.longest > 2**29:
            raise UserError(f"longest must be at most 2^29 inner steps, got {self.longest}")
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
        """The largest possible length after rounding, in inner steps."""
        return window * max(1, round(self.longest / window))

    def sample(self, key: Key, window: int, outer_step: jax.Array | int = 0) -> jax.Array:
        """Draws the () int32 length of an episode that starts at ``outer_step``."""
        longest = jnp.float32(self.longest)
        if self.growth:
            longest = self.shortest * (self.longest / self.shortest) ** jnp.minimum(1.0, outer_step / self.growth)
        u = jax.random.uniform(key)
        if self.distribution == "uniform":
            length = self.shortest + (longest - self.shortest) * u
        else:
            length = self.shortest * (longest / self.shortest) ** u
        return window * jnp.maximum(1, jnp.round(length / window)).astype(jnp.int32)
