"""The algorithms of evosax that there are, and how they are set up."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from meta_train.estimators.samples import Sampling
from meta_train.strategies.fitness import NORMALIZATIONS
from metaopt.core import InnerProblem, Theta
from metaopt.errors import UserError, unknown

LARGEST_COVARIANCE = 10_000  # entries of theta; the square of it is 400 MB


class Algorithm(NamedTuple):
    """An algorithm of evosax, and what sets it apart from the others."""

    name: str  # its class in evosax.algorithms
    by_gradient: bool = False  # the outer optimizer moves the mean
    adapts: bool = False  # sigma
    lockstep: bool = False  # one window an outer step


STRATEGIES = {
    "cma_es": Algorithm("CMA_ES", adapts=True),
    "noise_reuse_es": Algorithm("NoiseReuseES", by_gradient=True, lockstep=True),
    "open_es": Algorithm("Open_ES", by_gradient=True),
    "persistent_es": Algorithm("PersistentES", by_gradient=True, lockstep=True),
    "pgpe": Algorithm("PGPE", by_gradient=True, adapts=True),
    "sep_cma_es": Algorithm("Sep_CMA_ES", adapts=True),
    "snes": Algorithm("SNES", adapts=True),
}


@dataclasses.dataclass(frozen=True)
class Strategy:
    """A search strategy in the place of an estimator; what it shares with one is in ``Sampling``."""

    name: str = ""  # of STRATEGIES; none is an estimator
    population: int = 64  # members, each of which runs num_samples episodes of each task
    normalize: str = "zscore"  # of the losses of an episode over the population: none, zscore, rank; see fitness

    def __post_init__(self):
        if self.name and self.name not in STRATEGIES:
            raise unknown("strategy", self.name, STRATEGIES)
        if self.normalize not in NORMALIZATIONS:
            raise unknown("normalization", self.normalize, NORMALIZATIONS)
        if self.population < 4 or self.population % 2:
            raise UserError(f"population must be even and at least 4, got {self.population}")


def build(
    theta: Theta,
    problems: Sequence[InnerProblem],
    config: Strategy,
    sampling: Sampling,
    tx: optax.GradientTransformation,
) -> tuple[Any, Callable[[], Any]]:
    """Returns the algorithm, and ``() -> params``, to be made where they are traced.

    Where the outer optimizer moves the mean, evosax is not to shape the fitness a
    second time. The ranks that the others turn into weights are no such shaping but
    what they are.
    """
    # Not before the devices are made: evosax makes arrays where it is imported.
    from evosax import algorithms
    from evosax.core.fitness_shaping import identity_fitness_shaping_fn

    if not sampling.sigma:
        raise UserError("a strategy needs a sigma above 0")
    chosen = STRATEGIES[config.name]
    zeros = jax.tree.map(lambda t: jnp.zeros(t.shape, t.dtype), theta)
    size = optax.tree.size(zeros)
    if config.name == "cma_es" and size > LARGEST_COVARIANCE:
        raise UserError(f"cma_es keeps the covariance of all {size} entries of theta: take sep_cma_es or snes")
    options: dict[str, Any] = {}
    params: dict[str, Any] = {}
    if chosen.by_gradient:
        options |= {"optimizer": tx, "fitness_shaping_fn": identity_fitness_shaping_fn}
    if chosen.adapts:
        params["std_init"] = sampling.sigma
    else:
        options["std_schedule"] = optax.constant_schedule(sampling.sigma)
    if chosen.lockstep:
        params |= {"T": _common_length(problems, config.name, sampling.window), "K": sampling.window}
    algorithm = getattr(algorithms, chosen.name)(config.population, zeros, **options)
    return algorithm, lambda: algorithm.default_params.replace(**params)


def _common_length(problems: Sequence[InnerProblem], name: str, window: int) -> int:
    lengths = sorted({problem.longest for problem in problems})
    if len(lengths) > 1 or not lengths[0] or lengths[0] % window:
        raise UserError(f"{name} needs episodes of one known length, a multiple of the window {window}, got {lengths}")
    return lengths[0]
