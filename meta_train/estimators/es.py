"""Evolution strategies: one implementation, a constructor for each published method.

A sample i has two members, with theta + e_i and theta - e_i, which start from the same state
and see the same data. With window losses L+ and L-, the estimate is

    g = mean_i  w_i (L+_i - L-_i) / (2 sigma^2)

The methods differ in when e_i is drawn, in its weight w_i and in the inner states that
continue from one window to the next:

    full ES        once per episode     w = e               none, an estimate is an episode
    truncated ES   every window         w = e               one state, the same for both members
    PES            every window         w = sum of all e    one state for each member
    GPES           every K windows      w = sum of all e    one state for each member
    ES-Single      once per episode     w = e               one state for each member
    ES-Gen         a mixture of PES and ES-Single           one state for each member

Sources: PES, Vicol et al., arXiv:2112.13835; ES-Single and ES-Gen, Vicol,
arXiv:2304.11153; GPES, Li et al., arXiv:2304.12180.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from meta_train.estimators import samples, shaping, window
from meta_train.estimators.samples import Measured, Samples, Sampling
from meta_train.estimators.window import Window, WindowResult
from metaopt.core import Episode, Estimator, InnerProblem, Key, PyTree, Theta
from metaopt.errors import UserError, unknown

# vmap axes of an episode: members share every field but ``inner``, which has a leading axis of members.
MEMBERS = Episode(key=None, step=None, horizon=None, problem=None, inner=0)
PAIR = (1.0, -1.0)  # sign of the perturbation of each member


class Noise(NamedTuple):
    """How the perturbations of one sample are drawn and weighted.

    Attributes:
      init: ``theta -> memory``, the initial ``Samples.memory`` of a sample.
      draw: ``(theta, sample) -> (e, w, sample)``, perturbation and weight of a window, called at
        its start; ``sample.done`` says whether the window starts an episode.
    """

    init: Callable[[Theta], PyTree]
    draw: Callable[[Theta, Samples], tuple[Theta, Theta, Samples]]


def es_single(problem: InnerProblem, config: Sampling, mesh: Mesh) -> Estimator:
    """ES-Single, also called NRES: one perturbation for a whole episode.

    The perturbation is not stored: every window draws it again from the same key.
    """

    def draw(theta: Theta, sample: Samples) -> tuple[Theta, Theta, Samples]:
        sample = sample._replace(draw=sample.draw + sample.done)
        eps = samples.perturbation(theta, sample, config.sigma)
        return eps, eps, sample

    return _online(problem, config, mesh, Noise(_no_memory, draw))


def pes(problem: InnerProblem, config: Sampling, mesh: Mesh) -> Estimator:
    """Persistent evolution strategies: fresh noise in every window, unbiased."""
    return gpes(problem, config, mesh, windows_per_draw=1)


def gpes(problem: InnerProblem, config: Sampling, mesh: Mesh, windows_per_draw: int = 2) -> Estimator:
    """GPES_K: fresh noise every K windows, between PES (K = 1) and ES-Single (K windows are an episode).

    Args:
      problem: inner problem that the meta-gradient is taken through.
      config: settings that all estimators share.
      mesh: devices that the samples are sharded over.
      windows_per_draw: K, counted from the start of an episode.

    Raises:
      UserError: for windows_per_draw below 1.
    """
    if windows_per_draw < 1:
        raise UserError(f"windows_per_draw must be at least 1, got {windows_per_draw}")
    return _online(problem, config, mesh, accumulated(config, windows_per_draw))


def accumulated(config: Sampling, windows_per_draw: int) -> Noise:
    """Noise drawn every ``windows_per_draw`` windows; the weight is the sum of all draws of the episode."""
    period = windows_per_draw * config.window

    def draw(theta: Theta, sample: Samples) -> tuple[Theta, Theta, Samples]:
        # In an episode that continues, the window starts at the step where the last window ended.
        fresh = sample.done | (sample.episode.step % period == 0)
        sample = sample._replace(draw=sample.draw + fresh)
        eps = samples.perturbation(theta, sample, config.sigma)
        history = jax.tree.map(lambda a: jnp.where(sample.done, 0.0, a), sample.memory)
        total = jax.tree.map(lambda a, e: a + jnp.where(fresh, e, 0.0), history, eps)
        return eps, total, sample._replace(memory=total)

    return Noise(lambda theta: jax.tree.map(jnp.zeros_like, theta), draw)


def es_gen(problem: InnerProblem, config: Sampling, mesh: Mesh, shared: float = 0.7, fresh: float = 0.7) -> Estimator:
    """ES-Gen: a mixture of the noise e_s of ES-Single and the noise e_u of PES.

        e = shared * e_s + fresh * e_u
        w = (shared * e_s + fresh * sum of all e_u) / (shared^2 + fresh^2)

    Args:
      problem: inner problem that the meta-gradient is taken through.
      config: settings that all estimators share.
      mesh: devices that the samples are sharded over.
      shared: coefficient of the noise that all windows of an episode share.
      fresh: coefficient of the noise that is drawn in every window.

    Raises:
      UserError: if both coefficients are zero.
    """
    if not shared**2 + fresh**2:
        raise UserError("es_gen needs shared or fresh above 0")
    pes_noise = accumulated(config, 1)

    def mix(s: jax.Array, u: jax.Array) -> jax.Array:
        return shared * s + fresh * u

    def init(theta: Theta) -> PyTree:
        return pes_noise.init(theta), jnp.int32(0)

    def draw(theta: Theta, sample: Samples) -> tuple[Theta, Theta, Samples]:
        history, first_draw = sample.memory
        eps, total, sample = pes_noise.draw(theta, sample._replace(memory=history))
        first_draw = jnp.where(sample.done, sample.draw, first_draw)
        common = samples.perturbation(theta, sample._replace(draw=first_draw), config.sigma, "shared noise")
        weight = jax.tree.map(lambda s, u: mix(s, u) / (shared**2 + fresh**2), common, total)
        return jax.tree.map(mix, common, eps), weight, sample._replace(memory=(total, first_draw))

    return _online(problem, config, mesh, Noise(init, draw))


def truncated_es(problem: InnerProblem, config: Sampling, mesh: Mesh, advance: str = "mean") -> Estimator:
    """Truncated ES: both members start every window from the same state; biased like truncated backpropagation.

    Args:
      problem: inner problem that the meta-gradient is taken through.
      config: settings that all estimators share.
      mesh: devices that the samples are sharded over.
      advance: the member whose last state is the common start of the next window: "mean", a third
        member with theta itself, or "pos", the member with theta + e.

    Raises:
      UserError: for an unknown ``advance``.
    """
    if advance not in ("mean", "pos"):
        raise unknown("advance", str(advance), ("mean", "pos"))
    signs, common_member = ((*PAIR, 0.0), 2) if advance == "mean" else (PAIR, 0)

    def draw(theta: Theta, sample: Samples) -> tuple[Theta, Theta, Samples]:
        sample = sample._replace(draw=sample.draw + 1)
        eps = samples.perturbation(theta, sample, config.sigma)
        return eps, eps, sample

    return _online(problem, config, mesh, Noise(_no_memory, draw), signs, common_member)


def full_es(problem: InnerProblem, config: Sampling, mesh: Mesh, antithetic: bool = True) -> Estimator:
    """Full-unroll ES: every estimate runs whole episodes, one window after the other.

    With the mean of the losses as objective, all episodes have the same weight, whatever
    their length.

    Args:
      problem: inner problem that the meta-gradient is taken through.
      config: settings that all estimators share.
      mesh: devices that the samples are sharded over.
      antithetic: False is the vanilla estimator with one member in each sample,
        g = mean_i e_i L_i / sigma^2, whose variance grows with the loss itself.
    """
    check(config)
    samples.refuse(config, "full ES", "sample_clip")
    windows = window.build(problem, config.window, config.combine)
    signs = PAIR if antithetic else PAIR[:1]

    run_episode = functools.partial(window.run_episode, windows, config.window)
    run_members = jax.vmap(run_episode, in_axes=(0, MEMBERS), out_axes=(MEMBERS, 0, 0))

    def estimate_one(theta: Theta, sample: Samples, outer_step: jax.Array) -> tuple[Measured, Samples]:
        sample = sample._replace(draw=sample.draw + 1)
        eps = samples.perturbation(theta, sample, config.sigma)
        thetas = members(theta, eps, signs)
        episode, losses, capped = run_members(thetas, reset(windows, thetas, sample, outer_step))
        measured = _measure(eps, losses, jnp.mean(capped), episode)
        return measured._replace(inner_steps=len(signs) * episode.step), sample

    def init(theta: Theta, key: Key) -> Samples:
        del theta  # no episode is kept between estimates
        return samples.init(config, key)

    shape = shaping.build(config.shaping, config.sigma)
    return Estimator(init, samples.over_mesh(estimate_one, config, mesh, shape))


def _online(
    problem: InnerProblem,
    config: Sampling,
    mesh: Mesh,
    noise: Noise,
    signs: Sequence[float] = PAIR,
    common_member: int | None = None,
) -> Estimator:
    """An estimator whose episodes continue from one window to the next.

    Args:
      problem: inner problem that the meta-gradient is taken through.
      config: settings that all estimators share.
      mesh: devices that the samples are sharded over.
      noise: how this method draws its perturbations.
      signs: sign of the perturbation of each member; the first two are the antithetic pair.
      common_member: index of the member whose state all members continue from; None if every
        member continues from its own.
    """
    check(config)
    samples.refuse(config, "this evolution strategy", "sample_clip")
    windows = window.build(problem, config.window, config.combine)

    def estimate_one(theta: Theta, sample: Samples, outer_step: jax.Array) -> tuple[Measured, Samples]:
        eps, weight, sample = noise.draw(theta, sample)
        thetas = members(theta, eps, signs)
        episode = samples.begin(sample, reset(windows, thetas, sample, outer_step), config)
        ended, result = run(windows, thetas, episode)
        measured = _measure(weight, result.loss[:2], jnp.mean(result.capped), ended)
        measured = measured._replace(inner_steps=len(signs) * config.window)
        if common_member is not None:
            ended = _repeat(take(ended, common_member), len(signs))
        return measured, samples.finish(sample, ended, measured.dead)

    def init(theta: Theta, key: Key) -> Samples:
        zeros = jax.tree.map(jnp.zeros_like, theta)

        def start(sample: Samples) -> Episode:
            return reset(windows, members(theta, zeros, signs), sample, 0)

        return samples.init(config, key, start, noise.init(theta))

    shape = shaping.build(config.shaping, config.sigma)
    return Estimator(init, samples.over_mesh(estimate_one, config, mesh, shape))


def _no_memory(theta: Theta) -> PyTree:
    del theta
    return ()


def check(config: Sampling) -> None:
    """Raises UserError if there are no perturbations."""
    if not config.sigma:
        raise UserError("evolution strategies need a sigma above 0")


def members(theta: Theta, eps: Theta, signs: Sequence[float]) -> Theta:
    """theta + sign * eps for each of ``signs``, stacked on a new leading axis."""
    return jax.tree.map(lambda t, e: jnp.stack([t + s * e for s in signs]), theta, eps)


def take(episode: Episode, index: int | slice) -> Episode:
    """The episode of one of its members, or of several with a slice."""
    return episode._replace(inner=jax.tree.map(lambda x: x[index], episode.inner))


def _repeat(episode: Episode, num: int) -> Episode:
    """The same episode for each of ``num`` members."""
    return episode._replace(inner=jax.tree.map(lambda x: jnp.broadcast_to(x, (num, *x.shape)), episode.inner))


def reset(windows: Window, thetas: Theta, sample: Samples, outer_step: jax.Array | int) -> Episode:
    """The next episode of a sample, with the first inner state of every member."""
    all_members = jax.vmap(windows.reset, in_axes=(0, None, None), out_axes=MEMBERS)
    return all_members(thetas, samples.subkey(sample, "episode"), outer_step)


def run(windows: Window, thetas: Theta, episode: Episode) -> tuple[Episode, WindowResult]:
    """Runs one window for all members; the fields of WindowResult have a leading axis of members."""
    return jax.vmap(windows.run, in_axes=(0, MEMBERS), out_axes=(MEMBERS, 0))(thetas, episode)


def _measure(weight: Theta, losses: jax.Array, capped: jax.Array, episode: Episode) -> Measured:
    metrics = {"meta_loss": jnp.mean(losses)}
    if losses.size == 2:
        metrics["difference"] = jnp.abs(losses[0] - losses[1])
    return Measured(
        grad=weight,
        losses=losses,
        valid=jnp.all(jnp.isfinite(losses)),
        dead=samples.is_dead(episode),
        capped=capped,
        inner_steps=0,
        metrics=metrics,
    )
