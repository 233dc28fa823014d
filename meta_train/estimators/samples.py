"""Samples side by side: what estimators share whatever their mathematics.

A sample is an episode and what its estimator remembers of it. Each carries its own
key, so its numbers do not depend on the device it is on or on its neighbors.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from meta_train.estimators.shaping import SHAPINGS, Shaping
from meta_train.estimators.window import COMBINATIONS
from meta_train.parallel.devices import SAMPLE_AXIS
from metaopt.core import Episode, Key, PyTree, Theta
from metaopt.errors import UserError, unknown


@dataclasses.dataclass(frozen=True)
class Sampling:
    """What estimators have in common: how many samples, windows, perturbations."""

    num_samples: int = 16  # episodes side by side, of each task; for evolution strategies, antithetic pairs
    window: int = 50  # inner steps between two outer steps
    sigma: float = 0.01  # standard deviation of the perturbations of theta
    combine: str = "mean"  # how losses make the meta-objective: mean, last, min, fresh; see window.build
    shaping: str = "none"  # of the losses of evolution strategies: none, sign, rank, normalized; see shaping
    sample_clip: float = 0.0  # norm of the gradient of one sample, where it is differentiated; 0 is none
    at_once: int = 0  # samples computed at once on a device, where memory or cache is short; 0 is all
    staggered: bool = True  # first episodes are cut short, so that samples leave lockstep

    def __post_init__(self):
        if min(self.num_samples, self.window) < 1:
            raise UserError(f"num_samples and window must be at least 1, got {self.num_samples} and {self.window}")
        for name in ("sigma", "sample_clip", "at_once"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative, got {getattr(self, name)}")
        for kind, known in (("combine", COMBINATIONS), ("shaping", SHAPINGS)):
            if getattr(self, kind) not in known:
                raise unknown(kind, getattr(self, kind), known)


def refuse(config: Sampling, method: str, *names: str) -> None:
    """Raises UserError where a setting is given that ``method`` has no use for."""
    for field in dataclasses.fields(config):
        if field.name in names and getattr(config, field.name) != field.default:
            raise UserError(f"{method} has no use for {field.name}: set {field.name}={field.default}")


class Samples(NamedTuple):
    """State of all samples; leading axis (num_samples,), sharded over the mesh."""

    key: jax.Array
    draw: jax.Array  # int32, how often random numbers were drawn for the sample
    done: PyTree  # bool, the next window starts a new episode
    episode: PyTree  # an Episode; () if nothing is kept between estimates
    memory: PyTree = ()  # what else the estimator keeps


class Measured(NamedTuple):
    """What one sample contributes to an estimate."""

    grad: Theta  # up to a factor, where ``losses`` decide it
    valid: jax.Array  # () bool; where false, ``grad`` and ``metrics`` do not count
    dead: jax.Array  # () bool, the inner state is no longer finite
    capped: jax.Array  # () fraction of the losses that count as the worst
    inner_steps: jax.Array | int  # run for it
    metrics: dict[str, jax.Array]  # averaged over the valid samples
    losses: jax.Array | tuple = ()  # (members,) of an evolution strategy


def init(config: Sampling, key: Key, start: Callable[[Samples], Episode] | None = None, memory: PyTree = ()) -> Samples:
    """The state before the first estimate: every sample is about to start an episode.

    Args:
      config: how many samples.
      key: the run's key.
      start: makes an episode of the shapes that will be kept; it is never run.
      memory: what the estimator keeps of one sample besides its episode.
    """
    num = config.num_samples
    # By global index, not by device: the numbers are the same on any mesh.
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(num))
    repeated = jax.tree.map(lambda x: jnp.broadcast_to(x, (num, *x.shape)), memory)
    samples = Samples(keys, jnp.zeros(num, jnp.int32), jnp.ones(num, bool), (), repeated)
    if start is None:
        return samples
    # A horizon of 0 tells that it was never run.
    episode = jax.vmap(start)(samples)
    return samples._replace(episode=episode._replace(horizon=jnp.zeros_like(episode.horizon)))


PURPOSES = ("noise", "episode", "cut", "shared noise")


def subkey(sample: Samples, purpose: str) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(sample.key, sample.draw), PURPOSES.index(purpose))


def perturbation(theta: Theta, sample: Samples, sigma: float, purpose: str = "noise") -> Theta:
    """Normal noise of the shapes of theta, the same whenever ``sample.draw`` is the same."""
    leaves, tree = jax.tree.flatten(theta)
    key = subkey(sample, purpose)
    draws = [sigma * jax.random.normal(jax.random.fold_in(key, i), t.shape, t.dtype) for i, t in enumerate(leaves)]
    return tree.unflatten(draws)


def begin(sample: Samples, fresh: Episode, config: Sampling) -> Episode:
    """The episode of this window: the next one where the last one is done.

    Only windows start episodes: a reset inside a scan would run at every step.
    """
    if config.staggered:
        num_windows = -(-fresh.horizon // config.window)
        cut = config.window * jax.random.randint(subkey(sample, "cut"), (), 1, num_windows + 1)
        fresh = fresh._replace(horizon=jnp.where(sample.episode.horizon == 0, cut, fresh.horizon))
    return where(sample.done, fresh, sample.episode)


def finish(sample: Samples, after: Episode, dead: jax.Array) -> Samples:
    """The sample after a window."""
    return sample._replace(episode=after, done=(after.step >= after.horizon) | dead)


def over_mesh(estimate_one, config: Sampling, mesh: Mesh, shaping: Shaping | None = None):
    """Runs every sample on its device and averages over all: one all-reduce per estimate.

    Args:
      estimate_one: ``(theta, sample, outer_step) -> (Measured, sample)``.
      config: how many samples, and how many at once.
      mesh: devices that the samples are sharded over.
      shaping: makes the factors of ``Measured.grad`` from all ``Measured.losses``.

    Returns:
      The ``estimate`` of an Estimator.
    """
    num_devices = mesh.shape[SAMPLE_AXIS]
    if config.num_samples % num_devices:
        raise UserError(f"num_samples must be a multiple of the {num_devices} devices, got {config.num_samples}")

    def on_one_device(theta, outer_step, samples):
        one = lambda sample: estimate_one(theta, sample, outer_step)
        measured, samples = (
            jax.lax.map(one, samples, batch_size=config.at_once) if config.at_once else jax.vmap(one)(samples)
        )
        if shaping:
            factors = shaping(measured.losses, measured.valid)
            grad = jax.tree.map(lambda g: g * factors.reshape(-1, *[1] * (g.ndim - 1)), measured.grad)
            measured = measured._replace(grad=grad, losses=())
        return jax.lax.psum(_sum(measured), SAMPLE_AXIS), samples

    run = jax.shard_map(
        on_one_device,
        mesh=mesh,
        in_specs=(P(), P(), P(SAMPLE_AXIS)),
        out_specs=(P(), P(SAMPLE_AXIS)),
        check_vma=False,
    )

    def estimate(theta, state, outer_step):
        total, state = run(theta, jnp.int32(outer_step), state)
        mean = lambda x: x / jnp.maximum(total.valid, 1)
        known = lambda x: jnp.where(total.valid > 0, mean(x), jnp.nan)
        metrics = {name: known(x) for name, x in total.metrics.items()} | {
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
    """() bool, whether the inner state is no longer finite; one without floats never dies."""
    floats = [x for x in jax.tree.leaves(episode.inner) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return ~jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in floats], bool))


def where(condition, new, old):
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)
