"""Evolution strategies: one implementation, a constructor for each published method.

A sample i runs members from the same start on the same data, with theta + e_i and
theta - e_i. With window losses L+ and L-, the estimate is

    g = mean_i  w_i (L+_i - L-_i) / (2 sigma^2)

The methods differ in when e_i is drawn, in its weight w_i and in what is kept:

    full ES        once per episode     w = e               nothing, an estimate is an episode
    truncated ES   every window         w = e               one state, the same for both members
    PES            every window         w = sum of all e    both members
    GPES           every M windows      w = sum of all e    both members
    ES-Single      once per episode     w = e               both members
    ES-Gen         a mixture of PES and ES-Single           both members

Sources: PES, Vicol et al., arXiv:2112.13835; ES-Single and ES-Gen, Vicol,
arXiv:2304.11153; GPES, Li et al., arXiv:2304.12180.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from meta_train.estimators import samples, shaping, window
from meta_train.estimators.samples import Measured, Samples, Sampling
from meta_train.estimators.window import Window, WindowResult
from metaopt.core import Episode, Estimator, InnerProblem, PyTree, Theta
from metaopt.errors import UserError, unknown

# Members share all of an episode but ``inner``, which has a leading axis of members.
MEMBERS = Episode(key=None, step=None, horizon=None, problem=None, inner=0)
PAIR = (1.0, -1.0)  # signs of the perturbation of each member


class Noise(NamedTuple):
    """How the perturbations of one sample are drawn and weighed.

    Attributes:
      init: ``theta -> memory``.
      draw: ``(theta, sample) -> (e, w, sample)`` at the start of a window; the sample's
        ``done`` says that an episode begins.
    """

    init: Callable[[Theta], PyTree]
    draw: Callable[[Theta, Samples], tuple[Theta, Theta, Samples]]


def es_single(problem: InnerProblem, config: Sampling, mesh: Mesh) -> Estimator:
    """ES-Single, or NRES: one perturbation for a whole episode, whatever the window.

    Nothing but a key is kept of it: it is drawn again in every window.
    """

    def draw(theta, sample):
        sample = sample._replace(draw=sample.draw + sample.done)
        eps = samples.perturbation(theta, sample, config.sigma)
        return eps, eps, sample

    return _online(problem, config, mesh, Noise(lambda theta: (), draw))


def pes(problem: InnerProblem, config: Sampling, mesh: Mesh) -> Estimator:
    """Persistent evolution strategies: unbiased over windows, fresh noise in each."""
    return gpes(problem, config, mesh, windows_per_draw=1)


def gpes(problem: InnerProblem, config: Sampling, mesh: Mesh, windows_per_draw: int = 2) -> Estimator:
    """GPES_K with K = windows_per_draw windows: between PES (1) and ES-Single (an episode).

    K counts from step 0 of an episode.
    """
    if windows_per_draw < 1:
        raise UserError(f"windows_per_draw must be at least 1, got {windows_per_draw}")
    return _online(problem, config, mesh, accumulated(config, windows_per_draw))


def accumulated(config: Sampling, windows_per_draw: int) -> Noise:
    """Noise drawn every so many windows, weighed by its sum since the episode began."""
    period = windows_per_draw * config.window

    def draw(theta, sample):
        # A window of an episode that goes on begins where the last one ended.
        fresh = sample.done | (sample.episode.step % period == 0)
        sample = sample._replace(draw=sample.draw + fresh)
        eps = samples.perturbation(theta, sample, config.sigma)
        history = jax.tree.map(lambda a: jnp.where(sample.done, 0.0, a), sample.memory)
        total = jax.tree.map(lambda a, e: a + jnp.where(fresh, e, 0.0), history, eps)
        return eps, total, sample._replace(memory=total)

    return Noise(lambda theta: jax.tree.map(jnp.zeros_like, theta), draw)


def es_gen(problem: InnerProblem, config: Sampling, mesh: Mesh, shared: float = 0.7, fresh: float = 0.7) -> Estimator:
    """ES-Gen: e = shared * e_s + fresh * e_u, of ES-Single's noise and PES's.

    w = (shared * e_s + fresh * sum of all e_u) / (shared^2 + fresh^2)
    """
    if not shared**2 + fresh**2:
        raise UserError("es_gen needs shared or fresh above 0")
    windows = accumulated(config, 1)

    def draw(theta, sample):
        history, began = sample.memory
        eps, total, sample = windows.draw(theta, sample._replace(memory=history))
        began = jnp.where(sample.done, sample.draw, began)
        whole = samples.perturbation(theta, sample._replace(draw=began), config.sigma, "shared noise")
        mix = lambda s, u: shared * s + fresh * u
        weight = jax.tree.map(lambda s, u: mix(s, u) / (shared**2 + fresh**2), whole, total)
        return jax.tree.map(mix, whole, eps), weight, sample._replace(memory=(total, began))

    return _online(problem, config, mesh, Noise(lambda theta: (windows.init(theta), jnp.int32(0)), draw))


def truncated_es(problem: InnerProblem, config: Sampling, mesh: Mesh, advance: str = "mean") -> Estimator:
    """Truncated ES: every window is an episode of its own; biased like truncated backpropagation.

    Both members start each window from one state, which went on with theta itself
    (advance="mean", a third member) or is the first member's ("pos").
    """
    if advance not in ("mean", "pos"):
        raise unknown("advance", str(advance), ("mean", "pos"))
    signs, kept = ((*PAIR, 0.0), 2) if advance == "mean" else (PAIR, 0)

    def draw(theta, sample):
        sample = sample._replace(draw=sample.draw + 1)
        eps = samples.perturbation(theta, sample, config.sigma)
        return eps, eps, sample

    return _online(problem, config, mesh, Noise(lambda theta: (), draw), signs, kept)


def full_es(problem: InnerProblem, config: Sampling, mesh: Mesh, antithetic: bool = True) -> Estimator:
    """Full-unroll ES: every estimate runs whole episodes, window after window.

    With the mean of the losses as objective every episode weighs the same whatever its
    length. antithetic=False is the vanilla estimator of a single member, g = mean_i
    e_i L_i / sigma^2, whose variance grows with the loss itself.
    """
    check(config)
    samples.refuse(config, "full ES", "sample_clip")
    windows = window.build(problem, config.window, config.combine)
    signs = PAIR if antithetic else PAIR[:1]

    def estimate_one(theta: Theta, sample: Samples, outer_step):
        sample = sample._replace(draw=sample.draw + 1)
        eps = samples.perturbation(theta, sample, config.sigma)
        thetas = members(theta, eps, signs)
        episode = reset(windows, thetas, sample, outer_step)

        whole = functools.partial(window.run_whole, windows, config.window)
        every_member = jax.vmap(whole, in_axes=(0, MEMBERS), out_axes=(MEMBERS, 0, 0))
        episode, losses, capped = every_member(thetas, episode)
        measured = _measure(eps, losses, jnp.mean(capped), episode)
        return measured._replace(inner_steps=len(signs) * episode.step), sample

    shape = shaping.build(config.shaping, config.sigma)
    return Estimator(lambda theta, key: samples.init(config, key), samples.over_mesh(estimate_one, config, mesh, shape))


def _online(
    problem: InnerProblem, config: Sampling, mesh: Mesh, noise: Noise, signs=PAIR, kept: int | None = None
) -> Estimator:
    """An estimator that goes on with its episodes from window to window.

    Args:
      noise: of the method.
      signs: a member each; the first two are the pair.
      kept: the one member whose state goes on for all; None is each its own.
    """
    check(config)
    samples.refuse(config, "this evolution strategy", "sample_clip")
    windows = window.build(problem, config.window, config.combine)

    def estimate_one(theta: Theta, sample: Samples, outer_step):
        eps, weight, sample = noise.draw(theta, sample)
        thetas = members(theta, eps, signs)
        begun = samples.begin(sample, reset(windows, thetas, sample, outer_step), config)
        ended, ran = run(windows, thetas, begun)
        measured = _measure(weight, ran.loss[:2], jnp.mean(ran.capped), ended)
        measured = measured._replace(inner_steps=len(signs) * config.window)
        after = ended if kept is None else _for_all(take(ended, kept), len(signs))
        return measured, samples.finish(sample, after, measured.dead)

    def init(theta, key):
        zeros = jax.tree.map(jnp.zeros_like, theta)
        start = lambda sample: reset(windows, members(theta, zeros, signs), sample, 0)
        return samples.init(config, key, start, noise.init(theta))

    shape = shaping.build(config.shaping, config.sigma)
    return Estimator(init, samples.over_mesh(estimate_one, config, mesh, shape))


def check(config: Sampling) -> None:
    if not config.sigma:
        raise UserError("evolution strategies need a sigma above 0")


def members(theta: Theta, eps: Theta, signs) -> Theta:
    """theta + sign * eps on a new leading axis."""
    return jax.tree.map(lambda t, e: jnp.stack([t + s * e for s in signs]), theta, eps)


def take(episode: Episode, index) -> Episode:
    """Of the members of an episode one, or with a slice several."""
    return episode._replace(inner=jax.tree.map(lambda x: x[index], episode.inner))


def _for_all(episode: Episode, num: int) -> Episode:
    return episode._replace(inner=jax.tree.map(lambda x: jnp.broadcast_to(x, (num, *x.shape)), episode.inner))


def reset(windows: Window, thetas: Theta, sample: Samples, outer_step) -> Episode:
    """The next episode, with the start of every member."""
    all_members = jax.vmap(windows.reset, in_axes=(0, None, None), out_axes=MEMBERS)
    return all_members(thetas, samples.subkey(sample, "episode"), outer_step)


def run(windows: Window, thetas: Theta, episode: Episode) -> tuple[Episode, WindowResult]:
    """All members for a window; the fields of WindowResult have a leading axis of members."""
    return jax.vmap(windows.run, in_axes=(0, MEMBERS), out_axes=(MEMBERS, 0))(thetas, episode)


def _measure(weight: Theta, losses: jax.Array, capped, episode: Episode) -> Measured:
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
