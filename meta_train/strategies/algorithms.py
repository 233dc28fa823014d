"""The supported algorithms of evosax, and how they are set up."""

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

LARGEST_COVARIANCE = 10_000  # entries of theta; a full covariance then takes 400 MB


class Algorithm(NamedTuple):
    """An algorithm of evosax and its properties."""

    name: str  # name of its class in evosax.algorithms
    by_gradient: bool = False  # whether the outer optimizer moves the mean
    adapts: bool = False  # whether it adapts sigma
    lockstep: bool = False  # whether an outer step is one window, at the same inner step for all members


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
    """Settings of a search strategy; the settings that it shares with estimators are in ``Sampling``."""

    name: str = ""  # name in STRATEGIES; "" trains with an estimator instead
    population: int = 64  # number of members, each of which runs num_samples episodes of each task
    normalize: str = "zscore"  # normalization of losses over the population: none, zscore, rank; see fitness

    def __post_init__(self) -> None:
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
    """Builds an algorithm of evosax.

    If the outer optimizer moves the mean, the fitness shaping of evosax is turned off, because
    ``fitness`` has normalized the losses already. The other algorithms are defined by the ranks
    that they turn into weights, and keep them.

    Args:
      theta: arrays, or their shapes.
      problems: inner problems, whose length algorithms in lockstep need.
      config: name and population of the strategy.
      sampling: settings with the window and the initial sigma.
      tx: outer optimizer.

    Returns:
      The algorithm, and ``() -> params``, which is to be called inside the traced function.

    Raises:
      UserError: as ``meta_train.strategies.build``.
    """
    # Imported here because evosax creates arrays at import, which must not happen before the devices are set up.
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

    def make_params() -> Any:
        return algorithm.default_params.replace(**params)

    return algorithm, make_params


def _common_length(problems: Sequence[InnerProblem], name: str, window: int) -> int:
    lengths = sorted({problem.longest for problem in problems})
    if len(lengths) > 1 or not lengths[0] or lengths[0] % window:
        raise UserError(f"{name} needs episodes of one known length, a multiple of the window {window}, got {lengths}")
    return lengths[0]
