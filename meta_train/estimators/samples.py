"""Samples in parallel: the code that all estimators share.

A sample is an episode and what its estimator stores with it. Each sample has its own
key, so its numbers do not depend on the device it is on or on the other samples.
"""

import dataclasses
import math
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
    """Settings that all estimators share: number of samples, windows, perturbations."""

    num_samples: int = 16  # parallel episodes of each task; for evolution strategies, antithetic pairs
    window: int = 50  # inner steps between two outer steps
    sigma: float = 0.01  # standard deviation of the perturbations of theta
    combine: str = "mean"  # how losses form the meta-objective: mean, last, min, fresh; see window.build
    shaping: str = "none"  # fitness shaping in evolution strategies: none, sign, rank, normalized; see shaping
    sample_clip: float = 0.0  # largest norm of the gradient of one sample in differentiating estimators; 0 is no limit
    at_once: int = 0  # samples computed at the same time on a device, where memory or cache is short; 0 is all
    staggered: bool = True  # the first episodes end early at random, so that samples are at different inner steps

    def __post_init__(self) -> None:
        if min(self.num_samples, self.window) < 1:
            raise UserError(f"num_samples and window must be at least 1, got {self.num_samples} and {self.window}")
        for name in ("sigma", "sample_clip", "at_once"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} must not be negative, got {getattr(self, name)}")
        for kind, known in (("combine", COMBINATIONS), ("shaping", SHAPINGS)):
            if getattr(self, kind) not in known:
                raise unknown(kind, getattr(self, kind), known)


def refuse(config: Sampling, method: str, *names: str) -> None:
    """Raises UserError if one of the settings ``names``, which ``method`` does not use, is not at its default."""
    for field in dataclasses.fields(config):
        if field.name in names and getattr(config, field.name) != field.default:
            raise UserError(f"{method} does not use {field.name}: set {field.name}={field.default}")


class Samples(NamedTuple):
    """State of all samples; every leaf has the leading axis (num_samples,), sharded over the mesh."""

    key: jax.Array  # random key of the sample
    draw: jax.Array  # int32, number of times that random numbers were drawn for the sample
    done: PyTree  # bool, whether the next window starts a new episode
    episode: PyTree  # current Episode; () if no episode continues from one estimate to the next
    memory: PyTree = ()  # further state of the estimator


class Measured(NamedTuple):
    """The contribution of one sample to an estimate."""

    grad: Theta  # gradient; in evolution strategies the weight w, which is multiplied by a factor from ``losses``
    valid: jax.Array  # () bool; if false, ``grad`` and ``metrics`` are ignored
    dead: jax.Array  # () bool, whether the inner state is no longer finite
    capped: jax.Array  # () fraction of the losses that were replaced by the worst loss
    inner_steps: jax.Array | int  # inner steps that the sample took, all members together
    metrics: dict[str, jax.Array]  # () metrics, which are averaged over the valid samples
    losses: PyTree = ()  # (members,) losses in an evolution strategy; () in other estimators


EstimateOne = Callable[[Theta, Samples, jax.Array], tuple[Measured, Samples]]
Estimate = Callable[[Theta, Samples, jax.Array | int], tuple[Theta, Samples, dict[str, jax.Array]]]


def init(config: Sampling, key: Key, start: Callable[[Samples], Episode] | None = None, memory: PyTree = ()) -> Samples:
    """The state before the first estimate: every sample is about to start an episode.

    Args:
      config: settings with the number of samples.
      key: random key of the whole estimator.
      start: makes an episode with the shapes of the stored ones; its values are never used.
      memory: initial ``Samples.memory`` of one sample.
    """
    num = config.num_samples
    # Keys depend on the global index, not on the device: the numbers are the same on any mesh.
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(num))
    repeated = jax.tree.map(lambda x: jnp.broadcast_to(x, (num, *x.shape)), memory)
    samples = Samples(keys, jnp.zeros(num, jnp.int32), jnp.ones(num, bool), (), repeated)
    if start is None:
        return samples
    # A horizon of 0 marks the first episode of a sample, see begin.
    episode = jax.vmap(start)(samples)
    return samples._replace(episode=episode._replace(horizon=jnp.zeros_like(episode.horizon)))


PURPOSES = ("noise", "episode", "cut", "shared noise")


def subkey(sample: Samples, purpose: str) -> Key:
    """The random key of the current draw of a sample for one of PURPOSES."""
    return jax.random.fold_in(jax.random.fold_in(sample.key, sample.draw), PURPOSES.index(purpose))


def perturbation(theta: Theta, sample: Samples, sigma: float, purpose: str = "noise") -> Theta:
    """Normal noise with standard deviation ``sigma`` and the shapes of theta, a function of ``sample.draw``."""
    leaves, tree = jax.tree.flatten(theta)
    key = subkey(sample, purpose)
    draws = [sigma * jax.random.normal(jax.random.fold_in(key, i), t.shape, t.dtype) for i, t in enumerate(leaves)]
    return tree.unflatten(draws)


def begin(sample: Samples, fresh: Episode, config: Sampling) -> Episode:
    """The episode of this window: ``fresh`` if the last one is done, else the last one.

    Episodes start at the beginning of a window only: a reset inside a scan would be computed at every step.
    """
    if config.staggered:
        num_windows = -(-fresh.horizon // config.window)
        shorter = config.window * jax.random.randint(subkey(sample, "cut"), (), 1, num_windows + 1)
        fresh = fresh._replace(horizon=jnp.where(sample.episode.horizon == 0, shorter, fresh.horizon))
    return where(sample.done, fresh, sample.episode)


def finish(sample: Samples, episode: Episode, dead: jax.Array) -> Samples:
    """The sample after a window that ended in ``episode``."""
    return sample._replace(episode=episode, done=(episode.step >= episode.horizon) | dead)


def over_mesh(estimate_one: EstimateOne, config: Sampling, mesh: Mesh, shaping: Shaping | None = None) -> Estimate:
    """Computes every sample on its device and averages over all of them: one all-reduce per estimate.

    Args:
      estimate_one: ``(theta, sample, outer_step) -> (Measured, sample)``.
      config: settings with the number of samples, and how many are computed at the same time.
      mesh: devices that the samples are sharded over.
      shaping: computes the factors of ``Measured.grad`` from the ``Measured.losses`` of all samples.

    Returns:
      The ``estimate`` of an Estimator.

    Raises:
      UserError: if the number of samples is not a multiple of the number of devices.
    """
    num_devices = mesh.shape[SAMPLE_AXIS]
    if config.num_samples % num_devices:
        raise UserError(f"num_samples must be a multiple of the {num_devices} devices, got {config.num_samples}")

    def on_one_device(theta: Theta, outer_step: jax.Array, samples: Samples) -> tuple[Measured, Samples]:
        def one_sample(sample: Samples) -> tuple[Measured, Samples]:
            return estimate_one(theta, sample, outer_step)

        if config.at_once:
            measured, samples = jax.lax.map(one_sample, samples, batch_size=config.at_once)
        else:
            measured, samples = jax.vmap(one_sample)(samples)
        if shaping:
            factors = shaping(measured.losses, measured.valid)
            grad = jax.tree.map(lambda g: g * _like(factors, g), measured.grad)
            measured = measured._replace(grad=grad, losses=())
        return jax.lax.psum(_sum(measured), SAMPLE_AXIS), samples

    on_all_devices = jax.shard_map(
        on_one_device,
        mesh=mesh,
        in_specs=(P(), P(), P(SAMPLE_AXIS)),
        out_specs=(P(), P(SAMPLE_AXIS)),
        check_vma=False,
    )

    def estimate(
        theta: Theta, state: Samples, outer_step: jax.Array | int
    ) -> tuple[Theta, Samples, dict[str, jax.Array]]:
        total, state = on_all_devices(theta, jnp.int32(outer_step), state)

        def mean(x: jax.Array) -> jax.Array:
            return x / jnp.maximum(total.valid, 1)

        def mean_or_nan(x: jax.Array) -> jax.Array:
            return jnp.where(total.valid > 0, mean(x), jnp.nan)

        metrics = {name: mean_or_nan(x) for name, x in total.metrics.items()} | {
            "num_valid": total.valid,
            "frac_dead": total.dead / config.num_samples,
            "frac_capped": total.capped / config.num_samples,
            "inner_steps": total.inner_steps,
        }
        return jax.tree.map(mean, total.grad), state, metrics

    return estimate


def _sum(measured: Measured) -> Measured:
    """The sum over samples; gradients and metrics of samples that are not valid count as zero."""

    def sum_of_valid(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(_like(measured.valid, x), x, 0.0), axis=0)

    grad, metrics = jax.tree.map(sum_of_valid, (measured.grad, measured.metrics))
    others = jax.tree.map(lambda x: jnp.sum(jnp.float32(x), axis=0), measured._replace(grad=(), metrics={}))
    return others._replace(grad=grad, metrics=metrics)


def _like(vector: jax.Array, x: jax.Array) -> jax.Array:
    """(num,) reshaped to (num, 1, ..., 1) with as many axes as x."""
    return vector.reshape(-1, *[1] * (x.ndim - 1))


def is_dead(episode: Episode) -> jax.Array:
    """() bool, whether a float of the inner state is no longer finite."""
    floats = [x for x in jax.tree.leaves(episode.inner) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return ~jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in floats], bool))


def where(condition: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """``new`` where the () bool ``condition`` holds, else ``old``, leaf by leaf."""
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)
