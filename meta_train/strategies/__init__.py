"""Search strategies of evosax as outer optimizers: a population of thetas in place of a gradient.

An outer step asks the strategy for members, runs every member on the same episodes and
tells it one number a member, the smaller the better.

    open_es, persistent_es, noise_reuse_es   mirrored, g = mean_m f_m w_m / sigma^2
    pgpe                                     the same, and it adapts a sigma for each entry of theta
    cma_es, sep_cma_es, snes                 a step and a sigma of their own, from the ranks of f

with the fitness f_m of member m, see ``fitness``, and its perturbation w_m, in persistent_es
the sum of all since the episode began. The first two rows move their mean by the outer
optimizer. persistent_es and noise_reuse_es run one window an outer step, all members in
lockstep, the others whole episodes.

Sources: evosax, Lange, arXiv:2212.04180; Open_ES, Salimans et al., arXiv:1703.03864; PGPE,
Sehnke et al., 2010; CMA-ES, Hansen, arXiv:1604.00772; SNES, Schaul et al., 2011; PES,
arXiv:2112.13835; NRES, arXiv:2304.12180.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from meta_train.estimators import samples, window
from meta_train.estimators.samples import Sampling
from meta_train.outer import Program, TrainState
from meta_train.strategies import algorithms, fitness, population
from meta_train.strategies.algorithms import STRATEGIES, Strategy
from metaopt.core import InnerProblem, PyTree, Theta

__all__ = ["STRATEGIES", "Search", "Strategy", "build"]


class Search(NamedTuple):
    """``opt_state`` of a TrainState."""

    key: Any  # of the run
    state: PyTree  # of the algorithm


ASK, TELL, EPISODES = range(3)  # what the random numbers of an outer step are for


def build(
    theta: Theta,
    problems: Sequence[InnerProblem],
    strategy: Strategy,
    sampling: Sampling,
    tx: optax.GradientTransformation,
    mesh: Mesh,
) -> Program:
    """A strategy as an outer loop.

    Members are sharded over the mesh; their losses are gathered and told on every device. Where
    no loss is finite, or the new mean is not, theta and the strategy stay as they are;
    lockstep goes on with its episodes all the same.

    Args:
      theta: arrays, or their shapes.
      problems: run by every member.
      strategy: which one, and its population.
      sampling: episodes, windows and the first sigma.
      tx: moves the mean of strategies that estimate a gradient.
      mesh: devices that the members are sharded over.

    Raises:
      UserError: for a population that does not divide over the devices, a theta too large
        for a full covariance, or lockstep with episodes of unknown length; all must
        have ``longest`` inner steps.
    """
    lockstep = STRATEGIES[strategy.name].lockstep
    algorithm, make_params = algorithms.build(theta, problems, strategy, sampling, tx)
    windows = [window.build(problem, sampling.window, sampling.combine) for problem in problems]
    run = population.over_mesh(windows, strategy, sampling, mesh)

    def init(theta, key):
        k_run, k_search = jax.random.split(key)
        search = algorithm.init(k_search, theta, make_params())
        kept = population.init(windows, strategy, sampling, theta, k_run)
        return TrainState(theta, Search(k_run, _strong(search)), kept, jnp.zeros((), jnp.int32))

    def step(state: TrainState):
        (key, before), params = state.opt_state, make_params()
        draw = lambda outer_step, purpose: jax.random.fold_in(jax.random.fold_in(key, outer_step), purpose)
        members, asked = algorithm.ask(draw(state.step, ASK), before, params)
        clock = before.inner_step_counter if lockstep else jnp.int32(0)
        began = state.step - clock // sampling.window
        measured, kept = run(members, state.estimators, draw(began, EPISODES), clock, began)

        losses, usable = fitness.finite(measured.loss)
        combined = fitness.combine(losses, usable, strategy.normalize, lockstep)
        told, _ = algorithm.tell(draw(state.step, TELL), members, combined, asked, params)
        accept = jnp.any(usable) & jnp.all(jnp.isfinite(told.mean))
        # Of a strategy in lockstep the clock and the noise go on, as its episodes do.
        still = told.replace(mean=before.mean, opt_state=before.opt_state) if lockstep else before
        after = _strong(samples.where(accept, told, still))
        theta = algorithm.get_mean(after)
        metrics = population.metrics(measured, losses, usable) | {
            "theta_norm": optax.tree.norm(theta),
            "sigma": population.deviation(members, state.theta),
            "skipped": 1.0 - accept,
        }
        return TrainState(theta, Search(key, after), kept, state.step + 1), metrics

    return Program(init, step)


def _strong(search: PyTree) -> PyTree:
    """The same with types that are not weak, so that no dispatch compiles twice."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), search)
