"""The algorithms of evosax that there are, and how they are set up."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from meta_train.estimators import samples
from meta_train.strategies.fitness import NORMALISATIONS
from metaopt.core import InnerProblem, Theta
from metaopt.errors import UserError, unknown

LARGEST_COVARIANCE = 10_000  # entries of theta; the square of it is 400 MB


class Strategy(NamedTuple):
    """An algorithm of evosax, and what sets it apart from the others."""

    algorithm: str  # its class in evosax.algorithms
    by_gradient: bool = False  # the outer optimizer moves the mean
    adapts: bool = False  # sigma
    lockstep: bool = False  # one window an outer step


STRATEGIES = {
    "cma_es": Strategy("CMA_ES", adapts=True),
    "noise_reuse_es": Strategy("NoiseReuseES", by_gradient=True, lockstep=True),
    "open_es": Strategy("Open_ES", by_gradient=True),
    "persistent_es": Strategy("PersistentES", by_gradient=True, lockstep=True),
    "pgpe": Strategy("PGPE", by_gradient=True, adapts=True),
    "sep_cma_es": Strategy("Sep_CMA_ES", adapts=True),
    "snes": Strategy("SNES", adapts=True),
}


@dataclasses.dataclass(frozen=True)
class Config:
    strategy: str = "cma_es"
    population: int = 64
    normalise: str = "zscore"  # of the losses of an episode over the population, see fitness
    num_samples: int = 16  # episodes of each inner problem, the same for every member
    window: int = 50  # inner steps
    sigma: float = 0.01  # standard deviation of the first population around theta
    chunk: int = 0  # members computed at once on a device; 0 is all
    combine: str = "mean"  # how losses make a meta-objective, see window.build

    def __post_init__(self):
        if self.strategy not in STRATEGIES:
            raise unknown("strategy", self.strategy, STRATEGIES)
        if self.normalise not in NORMALISATIONS:
            raise unknown("normalisation", self.normalise, NORMALISATIONS)
        if self.population < 4 or self.population % 2:
            raise UserError(f"population must be even and at least 4, got {self.population}")
        # What it shares with estimators is checked there.
        samples.Config(self.num_samples, self.window, self.sigma, chunk=self.chunk, combine=self.combine)
        if not self.sigma:
            raise UserError("a strategy needs a sigma above 0")


def build(theta: Theta, problems: Sequence[InnerProblem], config: Config, tx: optax.GradientTransformation):
    """Returns the algorithm, and ``() -> params``, to be made where they are traced.

    Where the outer optimizer moves the mean, evosax is not to shape the fitness a
    second time. The ranks that the others turn into weights are no such shaping but
    what they are.
    """
    # Not before the devices are made: evosax makes arrays where it is imported.
    from evosax import algorithms
    from evosax.core.fitness_shaping import identity_fitness_shaping_fn

    strategy = STRATEGIES[config.strategy]
    zeros = jax.tree.map(lambda t: jnp.zeros(t.shape, t.dtype), theta)
    size = optax.tree.size(zeros)
    if config.strategy == "cma_es" and size > LARGEST_COVARIANCE:
        raise UserError(f"cma_es keeps the covariance of all {size} entries of theta: take sep_cma_es or snes")
    options: dict[str, Any] = {}
    params: dict[str, Any] = {}
    if strategy.by_gradient:
        options |= {"optimizer": tx, "fitness_shaping_fn": identity_fitness_shaping_fn}
    if strategy.adapts:
        params["std_init"] = config.sigma
    else:
        options["std_schedule"] = optax.constant_schedule(config.sigma)
    if strategy.lockstep:
        params |= {"T": _common_length(problems, config), "K": config.window}
    algorithm = getattr(algorithms, strategy.algorithm)(config.population, zeros, **options)
    return algorithm, lambda: algorithm.default_params.replace(**params)


def _common_length(problems: Sequence[InnerProblem], config: Config) -> int:
    lengths = sorted({problem.longest for problem in problems})
    if len(lengths) > 1 or not lengths[0] or lengths[0] % config.window:
        raise UserError(
            f"{config.strategy} needs episodes of one known length, a multiple of the window {config.window}, "
            f"got {lengths}"
        )
    return lengths[0]
