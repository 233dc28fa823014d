"""Samples side by side: what estimators share whatever their mathematics.

A sample is an episode and what its estimator remembers of it. Each carries its own
key, so its numbers do not depend on the device it is on or on its neighbours.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from meta_train.devices import SAMPLE_AXIS
from metaopt.core import Episode, PyTree, Theta
from metaopt.errors import UserError


@dataclasses.dataclass(frozen=True)
class Config:
    num_samples: int = 16  # episodes side by side; for evolution strategies, antithetic pairs
    window: int = 50  # inner steps between two outer steps
    sigma: float = 0.01  # standard deviation of the perturbations of theta
    staggered: bool = True  # first episodes are cut short, so that samples leave lockstep
    sample_clip: float = 0.0  # norm of the gradient of one sample, where it is differentiated; 0 is none
    chunk: int = 0  # samples computed at once on a device, where memory or cache is short; 0 is all

    def __post_init__(self):
        if min(self.num_samples, self.window) < 1 or min(self.sigma, self.sample_clip, self.chunk) < 0:
            raise UserError(
                f"num_samples and window must be at least 1, sigma, sample_clip and chunk not negative, got {self}"
            )


class Samples(NamedTuple):
    """State of all samples; leading axis (num_samples,), spread over the mesh."""

    key: jax.Array
    draw: jax.Array  # int32, how often random numbers were drawn for the sample
    done: PyTree  # bool, the next window starts a new episode
    episode: PyTree  # an Episode; () if nothing is kept between estimates
    memory: PyTree  # what else the estimator keeps


class Measured(NamedTuple):
    """What one sample contributes to an estimate."""

    grad: Theta
    valid: jax.Array  # () bool; where false, ``grad`` and ``metrics`` do not count
    dead: jax.Array  # () bool, the inner state is no longer finite
    capped: jax.Array  # () fraction of the losses that count as the worst
    inner_steps: jax.Array | int  # run for it
    metrics: dict[str, jax.Array]  # averaged over the valid samples


def init(config: Config, key, start: Callable[[Samples], Episode] | None = None, memory=()) -> Samples:
    """The state before the first estimate: every sample is about to start an episode.

    Args:
      config: of the estimator.
      key: of the run.
      start: makes an episode of the shapes that will be kept; it is never run.
      memory: of one sample.
    """
    num = config.num_samples
    # By global index, not by device: the numbers are the same on any mesh.
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(num))
    repeated = jax.tree.map(lambda x: jnp.broadcast_to(x, (num, *x.shape)), memory)
    samples = Samples(keys, jnp.zeros(num, jnp.int32), jnp.ones(num, bool), (), repeated)
    return samples._replace(episode=jax.vmap(start)(samples)) if start else samples


def subkey(sample: Samples, purpose: str) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(sample.key, sample.draw), ("noise", "episode", "cut").index(purpose))


def perturbation(theta: Theta, sample: Samples, sigma: float) -> Theta:
    leaves, tree = jax.tree.flatten(theta)
    key = subkey(sample, "noise")
    draws = [sigma * jax.random.normal(jax.random.fold_in(key, i), t.shape, t.dtype) for i, t in enumerate(leaves)]
    return tree.unflatten(draws)


def current(sample: Samples, fresh: Episode, config: Config) -> Episode:
    """The episode to go on with: ``fresh`` where the last one is done.

    Only windows start episodes: a reset inside a scan would run at every step.
    ``sample.draw`` is 1 in the first window of all.
    """
    if config.staggered:
        num_windows = -(-fresh.horizon // config.window)
        cut = config.window * jax.random.randint(subkey(sample, "cut"), (), 1, num_windows + 1)
        fresh = fresh._replace(horizon=jnp.where(sample.draw == 1, cut, fresh.horizon))
    return where(sample.done, fresh, sample.episode)


def spread(estimate_one, config: Config, mesh: Mesh):
    """Runs every sample on its device and averages over all: one all-reduce per estimate.

    Args:
      estimate_one: ``(theta, sample) -> (Measured, sample)``.
      config: of the estimator.
      mesh: of the devices.

    Returns:
      The ``estimate`` of an Estimator.
    """
    num_devices = mesh.shape[SAMPLE_AXIS]
    if config.num_samples % num_devices:
        raise UserError(f"num_samples must be a multiple of the {num_devices} devices, got {config.num_samples}")

    def on_one_device(theta, samples):
        one = lambda sample: estimate_one(theta, sample)
        measured, samples = (
            jax.lax.map(one, samples, batch_size=config.chunk) if config.chunk else jax.vmap(one)(samples)
        )
        return jax.lax.psum(_sum(measured), SAMPLE_AXIS), samples

    run = jax.shard_map(
        on_one_device, mesh=mesh, in_specs=(P(), P(SAMPLE_AXIS)), out_specs=(P(), P(SAMPLE_AXIS)), check_vma=False
    )

    def estimate(theta, state, key):
        del key  # every sample carries its own
        total, state = run(theta, state)
        mean = lambda x: x / jnp.maximum(total.valid, 1)
        metrics = {name: mean(x) for name, x in total.metrics.items()} | {
            "num_valid": total.valid,
            "frac_dead": total.dead / config.num_samples,
            "frac_capped": total.capped / config.num_samples,
            "inner_steps": total.inner_steps,
        }
        return jax.tree.map(mean, total.grad), state, metrics

    return estimate


def _sum(measured: Measured) -> Measured:
    """Over the leading axis; a sample that is not valid adds nothing."""

    def valid_only(x):
        keep = measured.valid.reshape(-1, *[1] * (x.ndim - 1))
        return jnp.sum(jnp.where(keep, x, 0.0), axis=0)

    kept = jax.tree.map(valid_only, (measured.grad, measured.metrics))
    rest = jax.tree.map(lambda x: jnp.sum(jnp.float32(x), axis=0), measured._replace(grad=(), metrics={}))
    return rest._replace(grad=kept[0], metrics=kept[1])


def is_dead(episode: Episode) -> jax.Array:
    floats = [x for x in jax.tree.leaves(episode.inner) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return ~jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in floats]))


def cap(losses: jax.Array, worst: float) -> tuple[jax.Array, jax.Array]:
    """Losses above ``worst`` or not finite count as ``worst``: (losses, fraction of them)."""
    capped = ~(losses <= worst)  # also where the loss is NaN
    return jnp.where(capped, worst, losses), jnp.mean(capped)


def where(condition, new, old):
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)
