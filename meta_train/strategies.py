"""Search strategies of evosax as outer optimizers: a population of thetas in place of a gradient.

An outer step asks the strategy for members, runs every member on the same episodes and
tells it one number a member, the smaller the better. With the meta-loss L_mc of member
m on column c, an episode of one of the inner problems,

    f_m = mean_c n(L_mc),   over the members of a column

    n: none     L
       zscore   (L - mean) / standard deviation
       rank     average ranks, centred, in [-0.5, 0.5]

so that with zscore and rank no episode or problem outweighs another, whatever its scale.

    open_es, persistent_es, noise_reuse_es   mirrored, g = mean_m f_m w_m / sigma^2
    pgpe                                     the same, and it adapts a sigma for each entry of theta
    cma_es, sep_cma_es, snes                 a step and a sigma of their own, from the ranks of f

The first two rows move the mean by the outer optimizer. w is the perturbation, in
persistent_es the sum of all since the episode began. persistent_es and noise_reuse_es
run a window an outer step, all members in lockstep, the others whole episodes. What
counts for those two is the sum over windows of an episode. A normalisation of each
window by itself would make a flat window count as much as a decisive one, so f is
multiplied by the mean over columns of their standard deviations: columns that
differ by a factor are balanced and windows keep their weight; with a single column
zscore estimates just what none does.

Sources: evosax, Lange, arXiv:2212.04180; Open_ES, Salimans et al., arXiv:1703.03864; PGPE,
Sehnke et al., 2010; CMA-ES, Hansen, arXiv:1604.00772; SNES, Schaul et al., 2011; PES,
arXiv:2112.13835; NRES, arXiv:2304.12180.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from meta_train.devices import SAMPLE_AXIS
from meta_train.estimators import samples, window
from meta_train.estimators.window import Window
from meta_train.outer import TrainState
from metaopt.core import InnerProblem, Key, PyTree, Theta
from metaopt.errors import UserError, unknown

LARGEST_COVARIANCE = 10_000  # entries of theta; the square of it is 400 MB


class Strategy(NamedTuple):
    """An algorithm of evosax and what tells it from the others."""

    algorithm: str  # its class in evosax.algorithms
    by_gradient: bool = False  # the mean moves by the outer optimizer; its losses are not shaped a second time
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

NORMALISATIONS = {  # of losses (members, columns)
    "none": lambda losses: losses,
    "zscore": lambda losses: (losses - jnp.mean(losses, axis=0)) / jnp.maximum(jnp.std(losses, axis=0), 1e-12),
    "rank": lambda losses: (jax.scipy.stats.rankdata(losses, axis=0) - 1) / (len(losses) - 1) - 0.5,
}


@dataclasses.dataclass(frozen=True)
class Config:
    strategy: str = "cma_es"
    population: int = 64
    normalise: str = "zscore"  # of the losses of an episode over the population
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


class Search(NamedTuple):
    """``opt_state`` of a TrainState."""

    key: Any  # of the run
    state: PyTree  # of the algorithm


class Measured(NamedTuple):
    """What a member did in an outer step; leading axes (problems, episodes)."""

    loss: jax.Array
    capped: jax.Array  # fraction of the losses that count as the worst
    dead: jax.Array  # bool, the inner state is no longer finite
    inner_steps: jax.Array


class Program(NamedTuple):
    init: Callable[[Theta, Key], TrainState]
    step: Callable[[TrainState], tuple[TrainState, dict[str, jax.Array]]]  # what outer.build_chunk scans


ASK, TELL, EPISODES = range(3)  # what the random numbers of an outer step are for


def build(
    theta: Theta, problems: Sequence[InnerProblem], config: Config, tx: optax.GradientTransformation, mesh: Mesh
) -> Program:
    """A strategy as an outer loop. Its TrainState holds the mean of the strategy as ``theta``.

    Members are spread over the mesh; their losses are gathered and told on every device.
    A member whose loss is not finite counts as the worst finite one of its column. A column
    without a finite loss is left out of the mean; where no column is left, or the new mean
    is not finite, theta stays as it is.

    Args:
      theta: arrays, or their shapes.
      problems: run by every member.
      config: of the strategy.
      tx: moves the mean of the strategies that estimate a gradient.
      mesh: of the devices.

    Raises:
      UserError: for a population that does not divide over the devices, a theta too large
        for a full covariance, or a lockstep strategy on episodes of an unknown length;
        all must have ``longest`` inner steps.
    """
    lockstep = STRATEGIES[config.strategy].lockstep
    algorithm, params = _algorithm(theta, problems, config, tx)
    windows = [window.build(problem, config.window, config.combine) for problem in problems]
    evaluate = _spread(windows, config, mesh)

    def init(theta, key):
        k_run, k_search = jax.random.split(key)
        state = algorithm.init(k_search, theta, params())
        kept = _resets(windows, config, theta, k_run) if lockstep else tuple(() for _ in windows)
        return TrainState(theta, Search(k_run, _strong(state)), kept, jnp.zeros((), jnp.int32))

    def step(state: TrainState):
        key, before = state.opt_state
        draw = lambda outer_step, purpose: jax.random.fold_in(jax.random.fold_in(key, outer_step), purpose)
        population, asked = algorithm.ask(draw(state.step, ASK), before, params())
        clock = before.inner_step_counter if lockstep else jnp.int32(0)
        began = state.step - clock // config.window
        measured, kept = evaluate(population, state.estimators, draw(began, EPISODES), clock, began)

        losses, usable = finite(measured.loss.reshape(config.population, -1))
        fitness = combine(losses, usable, config.normalise, lockstep)
        told, _ = algorithm.tell(draw(state.step, TELL), population, fitness, asked, params())
        accept = jnp.any(usable) & jnp.all(jnp.isfinite(told.mean))
        # Episodes in lockstep go on whatever comes of it, and so do their clock and their noise.
        still = told.replace(mean=before.mean, opt_state=before.opt_state) if lockstep else before
        after = _strong(samples.where(accept, told, still))
        theta = algorithm.get_mean(after)
        metrics = _metrics(measured, losses, usable) | {
            "theta_norm": optax.tree.norm(theta),
            "sigma": _deviation(population, state.theta),
            "skipped": 1.0 - accept,
        }
        return TrainState(theta, Search(key, after), kept, state.step + 1), metrics

    return Program(init, step)


def finite(losses: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Losses (members, columns) with the worst of a column in place of what is not finite.

    Also which columns are usable: (columns,) bool; the others are zero.
    """
    valid = jnp.isfinite(losses)
    usable = jnp.any(valid, axis=0)
    worst = jnp.max(jnp.where(valid, losses, -jnp.inf), axis=0)
    return jnp.where(usable, jnp.where(valid, losses, worst), 0.0), usable


def combine(losses: jax.Array, usable: jax.Array, normalise: str, lockstep: bool = False) -> jax.Array:
    """Fitness (members,) from losses (members, columns), the mean over columns that are usable."""
    mean = lambda x: jnp.sum(x * usable, axis=-1) / jnp.maximum(jnp.sum(usable), 1)
    fitness = mean(NORMALISATIONS[normalise](losses))
    return fitness * mean(jnp.std(losses, axis=0)) if lockstep and normalise != "none" else fitness


def _algorithm(theta: Theta, problems, config: Config, tx):
    """The algorithm of evosax, and its parameters: made where they are traced, for they are arrays."""
    # Not before the devices are made: evosax makes arrays where it is imported.
    from evosax import algorithms
    from evosax.core.fitness_shaping import identity_fitness_shaping_fn

    strategy = STRATEGIES[config.strategy]
    zeros = jax.tree.map(lambda t: jnp.zeros(t.shape, t.dtype), theta)
    size = optax.tree.size(zeros)
    if config.strategy == "cma_es" and size > LARGEST_COVARIANCE:
        raise UserError(f"cma_es keeps the covariance of all {size} entries of theta: take sep_cma_es or snes")
    options: dict[str, Any] = {}
    if strategy.by_gradient:
        options |= {"optimizer": tx, "fitness_shaping_fn": identity_fitness_shaping_fn}
    if not strategy.adapts:
        options["std_schedule"] = optax.constant_schedule(config.sigma)
    settings: dict[str, Any] = {"std_init": config.sigma} if strategy.adapts else {}
    if strategy.lockstep:
        settings |= {"T": _common_length(problems, config), "K": config.window}
    algorithm = getattr(algorithms, strategy.algorithm)(config.population, zeros, **options)
    return algorithm, lambda: algorithm.default_params.replace(**settings)


def _common_length(problems: Sequence[InnerProblem], config: Config) -> int:
    lengths = sorted({problem.longest for problem in problems})
    if len(lengths) > 1 or not lengths[0] or lengths[0] % config.window:
        raise UserError(
            f"{config.strategy} needs episodes of one known length, a multiple of the window {config.window}, "
            f"got {lengths}"
        )
    return lengths[0]


def _spread(windows: Sequence[Window], config: Config, mesh: Mesh):
    """Returns ``(population, kept, key, clock, began) -> (Measured, kept)`` of all members."""
    num_devices, lockstep = mesh.shape[SAMPLE_AXIS], STRATEGIES[config.strategy].lockstep
    if config.population % num_devices:
        raise UserError(f"population must be a multiple of the {num_devices} devices, got {config.population}")

    def go_on(w: Window, theta: Theta, began, clock, key, inner):
        """A window more. Of an episode only what theta acts on is kept: the rest comes from its key."""
        fresh = w.reset(theta, key, began)
        episode = fresh._replace(step=clock, inner=samples.where(clock == 0, fresh.inner, inner))
        ended, ran = w.run(theta, episode)
        return Measured(ran.loss, ran.capped, samples.is_dead(ended), jnp.int32(config.window)), ended.inner

    def whole(w: Window, theta: Theta, began, clock, key, inner):
        del clock
        ended, loss, capped = window.run_whole(w, config.window, theta, w.reset(theta, key, began))
        return Measured(loss, capped, samples.is_dead(ended), ended.step), inner

    run = go_on if lockstep else whole

    def on_one_device(population, kept, key, clock, began):
        def one_member(member):
            theta, kept = member
            all_episodes = lambda i, w: jax.vmap(functools.partial(run, w, theta, began, clock))(
                _keys(key, i, config), kept[i]
            )
            measured, kept = zip(*[all_episodes(i, w) for i, w in enumerate(windows)], strict=True)
            return jax.tree.map(lambda *x: jnp.stack(x), *measured), kept

        both = population, kept
        measured, kept = (
            jax.lax.map(one_member, both, batch_size=config.chunk) if config.chunk else jax.vmap(one_member)(both)
        )
        return jax.lax.all_gather(measured, SAMPLE_AXIS, tiled=True), kept

    by_member = P(SAMPLE_AXIS)
    return jax.shard_map(
        on_one_device,
        mesh=mesh,
        in_specs=(by_member, by_member, P(), P(), P()),
        out_specs=(P(), by_member),
        check_vma=False,
    )


def _keys(key: Key, problem: int, config: Config) -> jax.Array:
    """Of the episodes of a problem: the same for every member."""
    return jax.random.split(jax.random.fold_in(key, problem), config.num_samples)


def _resets(windows: Sequence[Window], config: Config, theta: Theta, key: Key) -> tuple[PyTree, ...]:
    """States of the shapes that are kept, (population, episodes, ...) for each problem; none is ever run."""

    def one_member(_):
        inner = lambda w, key: w.reset(theta, key, 0).inner
        return tuple(jax.vmap(lambda k, w=w: inner(w, k))(_keys(key, i, config)) for i, w in enumerate(windows))

    return jax.vmap(one_member)(jnp.arange(config.population))


def _strong(state: PyTree) -> PyTree:
    """The same with types that are not weak, so that no dispatch compiles twice."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), state)


def _metrics(measured: Measured, losses: jax.Array, usable: jax.Array) -> dict[str, jax.Array]:
    """Of the population, all and by problem, named like an estimator's."""
    _, num_problems, _ = measured.loss.shape
    usable = usable.reshape(num_problems, -1)
    means = jnp.mean(losses, axis=0).reshape(num_problems, -1)
    meta_loss = lambda mean, usable: jnp.sum(mean * usable) / jnp.maximum(jnp.sum(usable), 1)
    steps = jnp.sum(jnp.float32(measured.inner_steps), axis=(0, 2))
    metrics = {"meta_loss": meta_loss(means, usable), "inner_steps": jnp.sum(steps)}
    for i in range(num_problems):
        metrics |= {
            f"problem_{i}/meta_loss": meta_loss(means[i], usable[i]),
            f"problem_{i}/num_valid": jnp.sum(jnp.isfinite(measured.loss[:, i])),
            f"problem_{i}/frac_dead": jnp.mean(measured.dead[:, i]),
            f"problem_{i}/frac_capped": jnp.mean(measured.capped[:, i]),
            f"problem_{i}/inner_steps": steps[i],
        }
    return metrics


def _deviation(population: Theta, theta: Theta) -> jax.Array:
    """() root mean square of what members differ by from the mean, over entries."""
    apart = jax.tree.map(jnp.subtract, population, theta)
    return optax.tree.norm(apart) / optax.tree.size(apart) ** 0.5
