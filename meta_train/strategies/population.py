"""Members side by side: every one runs the same episodes, with its own theta."""

import functools
from collections.abc import Sequence
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
    """What members did in an outer step; axes (members, problems, episodes)."""

    loss: jax.Array
    capped: jax.Array  # fraction of the losses that count as the worst
    dead: jax.Array  # bool, the inner state is no longer finite
    inner_steps: jax.Array


def init(
    windows: Sequence[Window], strategy: Strategy, sampling: Sampling, theta: Theta, key: Key
) -> tuple[PyTree, ...]:
    """What is kept from step to step, for each problem (members, episodes, ...).

    In lockstep that is what theta acts on, here of the right shapes and never run; else nothing.
    """
    if not STRATEGIES[strategy.name].lockstep:
        return tuple(() for _ in windows)

    def one_problem(w, keys):
        inner = jax.vmap(lambda key: w.reset(theta, key, 0).inner)(keys)
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (strategy.population, *x.shape)), inner)

    return tuple(one_problem(w, _keys(key, i, sampling)) for i, w in enumerate(windows))


def over_mesh(windows: Sequence[Window], strategy: Strategy, sampling: Sampling, mesh: Mesh):
    """Runs members on their devices: one gathering of losses an outer step.

    Returns:
      ``(members, kept, key, clock, began) -> (Measured, kept)``: episodes drawn from
      ``key`` at outer step ``began`` that are ``clock`` inner steps old; ``clock`` is 0
      where whole episodes are run.
    """
    num_devices = mesh.shape[SAMPLE_AXIS]
    if strategy.population % num_devices:
        raise UserError(f"population must be a multiple of the {num_devices} devices, got {strategy.population}")

    def one_window(w: Window, theta: Theta, clock, began, key, inner):
        # But for what theta acts on, an episode comes from its key again.
        fresh = w.reset(theta, key, began)
        episode = fresh._replace(step=clock, inner=samples.where(clock == 0, fresh.inner, inner))
        ended, ran = w.run(theta, episode)
        return Measured(ran.loss, ran.capped, samples.is_dead(ended), jnp.int32(sampling.window)), ended.inner

    def whole(w: Window, theta: Theta, clock, began, key, inner):
        del clock
        ended, loss, capped = window.run_whole(w, sampling.window, theta, w.reset(theta, key, began))
        return Measured(loss, capped, samples.is_dead(ended), ended.step), inner

    run = one_window if STRATEGIES[strategy.name].lockstep else whole

    def on_one_device(members, kept, key, clock, began):
        def one_member(member):
            theta, kept = member
            results = []
            for i, w in enumerate(windows):
                one_episode = functools.partial(run, w, theta, clock, began)
                results.append(jax.vmap(one_episode)(_keys(key, i, sampling), kept[i]))
            measured, kept = zip(*results, strict=True)
            return jax.tree.map(lambda *x: jnp.stack(x), *measured), kept

        each = (members, kept)
        measured, kept = (
            jax.lax.map(one_member, each, batch_size=sampling.at_once)
            if sampling.at_once
            else jax.vmap(one_member)(each)
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


def metrics(measured: Measured, losses: jax.Array, usable: jax.Array) -> dict[str, jax.Array]:
    """Of the whole population, named like an estimator's; ``losses`` and ``usable`` as ``fitness.finite``."""
    means = jnp.mean(losses, axis=0)
    steps = jnp.sum(jnp.float32(measured.inner_steps), axis=(0, 2))
    found = {"meta_loss": fitness.mean(means.ravel(), usable.ravel()), "inner_steps": jnp.sum(steps)}
    for i in range(len(means)):
        found |= {
            f"problem_{i}/meta_loss": fitness.mean(means[i], usable[i]),
            f"problem_{i}/num_valid": jnp.sum(jnp.isfinite(measured.loss[:, i])),
            f"problem_{i}/frac_dead": jnp.mean(measured.dead[:, i]),
            f"problem_{i}/frac_capped": jnp.mean(measured.capped[:, i]),
            f"problem_{i}/inner_steps": steps[i],
        }
    return found


def deviation(members: Theta, theta: Theta) -> jax.Array:
    """() root mean square, over members and entries, of what members differ by from theta."""
    apart = jax.tree.map(jnp.subtract, members, theta)
    return optax.tree.norm(apart) / optax.tree.size(apart) ** 0.5


def _keys(key: Key, problem: int, sampling: Sampling) -> jax.Array:
    return jax.random.split(jax.random.fold_in(key, problem), sampling.num_samples)
