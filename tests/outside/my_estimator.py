"""An estimator of a user's own."""

from my_recipe import half_pes

__all__ = ["half_pes"]
