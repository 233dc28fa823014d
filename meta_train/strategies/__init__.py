"""Search strategies of evosax as outer optimizers: a population of thetas instead of a gradient.

In every outer step the strategy proposes members, all members run the same episodes, and the
strategy is updated with one fitness for each member, the smaller the better.

    open_es, persistent_es, noise_reuse_es   mirrored, g = mean_m f_m w_m / sigma^2
    pgpe                                     the same, with an adapted sigma for each entry of theta
    cma_es, sep_cma_es, snes                 their own update of mean and sigma, from the ranks of f

Here f_m is the fitness of member m, see ``fitness``, and w_m its perturbation, in persistent_es
the sum of its perturbations since the start of the episode. In the first two rows the outer
optimizer moves the mean. persistent_es and noise_reuse_es are in lockstep: an outer step is one
window, which starts at the same inner step for all members. In the others an outer step is
whole episodes.

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
from metaopt.core import InnerProblem, Key, PyTree, Theta

__all__ = ["STRATEGIES", "Search", "Strategy", "build"]


class Search(NamedTuple):
    """``opt_state`` of a TrainState."""

    key: Any  # random key of the whole search
    state: PyTree  # state of the evosax algorithm


ASK, TELL, EPISODES = range(3)  # purposes of the random numbers of an outer step


def build(
    theta: Theta,
    problems: Sequence[InnerProblem],
    strategy: Strategy,
    sampling: Sampling,
    tx: optax.GradientTransformation,
    mesh: Mesh,
) -> Program:
    """The outer loop of a search strategy.

    Members are sharded over the mesh; their losses are gathered, and every device updates the
    strategy with all of them. If no loss is finite, or the new mean is not, theta and the
    strategy do not change; in lockstep the episodes still advance.

    Args:
      theta: arrays, or their shapes.
      problems: inner problems, all of which every member runs.
      strategy: name and population of the strategy.
      sampling: number of episodes, windows and the initial sigma.
      tx: outer optimizer, which moves the mean of strategies that estimate a gradient.
      mesh: devices that the members are sharded over.

    Raises:
      UserError: for a population that is not a multiple of the number of devices, a theta too
        large for a full covariance, or lockstep with episodes that do not all have the same
        known length, ``longest``.
    """
    lockstep = STRATEGIES[strategy.name].lockstep
    algorithm, make_params = algorithms.build(theta, problems, strategy, sampling, tx)
    windows = [window.build(problem, sampling.window, sampling.combine) for problem in problems]
    evaluate = population.over_mesh(windows, strategy, sampling, mesh)

    def init(theta: Theta, key: Key) -> TrainState:
        k_steps, k_init = jax.random.split(key)
        search = algorithm.init(k_init, theta, make_params())
        inner = population.init(windows, strategy, sampling, theta, k_steps)
        return TrainState(theta, Search(k_steps, _strong(search)), inner, jnp.zeros((), jnp.int32))

    def step(state: TrainState) -> tuple[TrainState, dict[str, jax.Array]]:
        (key, search), params = state.opt_state, make_params()

        def subkey(outer_step: jax.Array, purpose: int) -> Key:
            return jax.random.fold_in(jax.random.fold_in(key, outer_step), purpose)

        members, asked = algorithm.ask(subkey(state.step, ASK), search, params)
        inner_step = search.inner_step_counter if lockstep else jnp.int32(0)
        first_outer_step = state.step - inner_step // sampling.window  # the one in which the episodes started
        episodes_key = subkey(first_outer_step, EPISODES)
        measured, inner = evaluate(members, state.estimators, episodes_key, inner_step, first_outer_step)

        losses, usable = fitness.finite(measured.loss)
        combined = fitness.combine(losses, usable, strategy.normalize, lockstep)
        updated, _ = algorithm.tell(subkey(state.step, TELL), members, combined, asked, params)
        accept = jnp.any(usable) & jnp.all(jnp.isfinite(updated.mean))
        # In lockstep the inner step and the noise advance in any case, because the episodes do.
        rejected = updated.replace(mean=search.mean, opt_state=search.opt_state) if lockstep else search
        search = _strong(samples.where(accept, updated, rejected))
        theta = algorithm.get_mean(search)
        metrics = population.metrics(measured, losses, usable) | {
            "theta_norm": optax.tree.norm(theta),
            "sigma": population.deviation(members, state.theta),
            "skipped": 1.0 - accept,
        }
        return TrainState(theta, Search(key, search), inner, state.step + 1), metrics

    return Program(init, step)


def _strong(search: PyTree) -> PyTree:
    """The same state without weakly typed arrays, so that no dispatch is compiled twice."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), search)
