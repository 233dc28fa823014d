"""Members in parallel: all of them run the same episodes, each with its own theta."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from meta_train.estimators import samples, window
from meta_train.estimators.samples import Sampling
from meta_train.estimators.window import Window
from meta_train.parallel.devices import SAMPLE_AXIS
from meta_train.strategies import fitness
from meta_train.strategies.algorithms import STRATEGIES, Strategy
from metaopt.core import Key, PyTree, Theta
from metaopt.errors import UserError


class Measured(NamedTuple):
    """Results of all members in an outer step; axes (members, problems, episodes)."""

    loss: jax.Array  # meta-loss
    capped: jax.Array  # fraction of the losses that were replaced by the worst loss
    dead: jax.Array  # bool, whether the inner state is no longer finite
    inner_steps: jax.Array


InnerStates = tuple[PyTree, ...]  # for each problem (members, episodes, ...) inner states in lockstep, else ()
Evaluate = Callable[[Theta, InnerStates, Key, jax.Array, jax.Array], tuple[Measured, InnerStates]]


def init(windows: Sequence[Window], strategy: Strategy, sampling: Sampling, theta: Theta, key: Key) -> InnerStates:
    """The inner states before the first outer step; only their shapes are used, the first window resets them.

    Args:
      windows: inner problems.
      strategy: name and population of the strategy.
      sampling: settings with the number of episodes.
      theta: meta-parameters.
      key: random key.
    """
    if not STRATEGIES[strategy.name].lockstep:
        return tuple(() for _ in windows)

    def one_problem(w: Window, keys: Key) -> PyTree:
        inner = jax.vmap(lambda key: w.reset(theta, key, 0).inner)(keys)
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (strategy.population, *x.shape)), inner)

    return tuple(one_problem(w, _keys(key, i, sampling)) for i, w in enumerate(windows))


def over_mesh(windows: Sequence[Window], strategy: Strategy, sampling: Sampling, mesh: Mesh) -> Evaluate:
    """Runs every member on its device: one all-gather of losses in each outer step.

    Args:
      windows: inner problems.
      strategy: name and population of the strategy.
      sampling: number of episodes, windows, and how many members are computed at the same time.
      mesh: devices that the members are sharded over.

    Returns:
      ``(members, inner, key, inner_step, outer_step) -> (Measured, inner)`` for episodes that were
      drawn from ``key``, started at ``outer_step`` and are at ``inner_step``, which is 0 outside
      lockstep.

    Raises:
      UserError: if the population is not a multiple of the number of devices.
    """
    num_devices = mesh.shape[SAMPLE_AXIS]
    if strategy.population % num_devices:
        raise UserError(f"population must be a multiple of the {num_devices} devices, got {strategy.population}")

    def run_window(
        w: Window, theta: Theta, inner_step: jax.Array, outer_step: jax.Array, key: Key, inner: PyTree
    ) -> tuple[Measured, PyTree]:
        # Only the inner state is stored; the other fields of an episode are computed again from its key.
        fresh = w.reset(theta, key, outer_step)
        episode = fresh._replace(step=inner_step, inner=samples.where(inner_step == 0, fresh.inner, inner))
        ended, result = w.run(theta, episode)
        return Measured(result.loss, result.capped, samples.is_dead(ended), jnp.int32(sampling.window)), ended.inner

    def run_episode(
        w: Window, theta: Theta, inner_step: jax.Array, outer_step: jax.Array, key: Key, inner: PyTree
    ) -> tuple[Measured, PyTree]:
        del inner_step
        ended, loss, capped = window.run_episode(w, sampling.window, theta, w.reset(theta, key, outer_step))
        return Measured(loss, capped, samples.is_dead(ended), ended.step), inner

    run = run_window if STRATEGIES[strategy.name].lockstep else run_episode

    def on_one_device(
        members: Theta, inner: InnerStates, key: Key, inner_step: jax.Array, outer_step: jax.Array
    ) -> tuple[Measured, InnerStates]:
        def one_member(member: tuple[Theta, InnerStates]) -> tuple[Measured, InnerStates]:
            theta, inner = member
            results = []
            for i, w in enumerate(windows):
                one_episode = functools.partial(run, w, theta, inner_step, outer_step)
                results.append(jax.vmap(one_episode)(_keys(key, i, sampling), inner[i]))
            measured, inner = zip(*results, strict=True)
            return jax.tree.map(lambda *x: jnp.stack(x), *measured), inner

        if sampling.at_once:
            measured, inner = jax.lax.map(one_member, (members, inner), batch_size=sampling.at_once)
        else:
            measured, inner = jax.vmap(one_member)((members, inner))
        return jax.lax.all_gather(measured, SAMPLE_AXIS, tiled=True), inner

    by_member = P(SAMPLE_AXIS)
    return jax.shard_map(
        on_one_device,
        mesh=mesh,
        in_specs=(by_member, by_member, P(), P(), P()),
        out_specs=(P(), by_member),
        check_vma=False,
    )


def metrics(measured: Measured, losses: jax.Array, usable: jax.Array) -> dict[str, jax.Array]:
    """The metrics of the population, with the names that the metrics of estimators have.

    Args:
      measured: results of all members.
      losses, usable: results of ``fitness.finite``.
    """
    means = jnp.mean(losses, axis=0)
    steps = jnp.sum(jnp.float32(measured.inner_steps), axis=(0, 2))
    values = {"meta_loss": fitness.mean(means.ravel(), usable.ravel()), "inner_steps": jnp.sum(steps)}
    for i in range(len(means)):
        values |= {
            f"problem_{i}/meta_loss": fitness.mean(means[i], usable[i]),
            f"problem_{i}/num_valid": jnp.sum(jnp.isfinite(measured.loss[:, i])),
            f"problem_{i}/frac_dead": jnp.mean(measured.dead[:, i]),
            f"problem_{i}/frac_capped": jnp.mean(measured.capped[:, i]),
            f"problem_{i}/inner_steps": steps[i],
        }
    return values


def deviation(members: Theta, theta: Theta) -> jax.Array:
    """() root mean square, over members and entries, of the difference between members and theta."""
    difference = jax.tree.map(jnp.subtract, members, theta)
    return optax.tree.norm(difference) / optax.tree.size(difference) ** 0.5


def _keys(key: Key, problem: int, sampling: Sampling) -> jax.Array:
    return jax.random.split(jax.random.fold_in(key, problem), sampling.num_samples)
