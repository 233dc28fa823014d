"""Evolution strategies in antithetic pairs: full-unroll ES, PES, ES-Single.

A pair i runs two members from the same start with theta + e_i and theta - e_i, on
the same data. With window losses L+ and L-, the estimate is

    g = mean_i  w_i (L+_i - L-_i) / (2 sigma^2)

The methods differ in when e_i is drawn, in the weight w_i and in what is kept:

    full ES     once per episode    w = e               nothing, an estimate is an episode
    PES         every window        w = sum of all e    both members
    ES-Single   once per episode    w = e               both members

Sources: PES, Vicol et al., arXiv:2112.13835; ES-Single, Vicol, arXiv:2304.11153.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from meta_train.estimators import samples
from meta_train.estimators.samples import Config, Measured, Samples
from metaopt.core import Episode, Estimator, InnerProblem, Theta
from metaopt.errors import UserError

# Both members share all of an episode but ``inner``, which has a leading axis of 2.
MEMBERS = Episode(key=None, step=None, horizon=None, problem=None, inner=0)


def pes(problem: InnerProblem, config: Config, mesh: Mesh) -> Estimator:
    """Persistent evolution strategies: unbiased over windows, fresh noise in each."""
    return _online(problem, config, mesh, fresh_noise=True)


def es_single(problem: InnerProblem, config: Config, mesh: Mesh) -> Estimator:
    """ES-Single: one perturbation for a whole episode, whatever the window."""
    return _online(problem, config, mesh, fresh_noise=False)


def full_es(problem: InnerProblem, config: Config, mesh: Mesh) -> Estimator:
    """Full-unroll ES: every estimate runs whole episodes, window after window.

    The loss of an episode is its mean over inner steps, so every episode weighs the
    same whatever its length.
    """
    _check(config)

    def estimate_pair(theta: Theta, pair: Samples):
        pair = pair._replace(draw=pair.draw + 1)
        eps = samples.perturbation(theta, pair, config.sigma)
        thetas = _members(theta, eps)
        episode = _reset(problem, thetas, pair)

        def another_window(carry):
            episode, total, capped = carry
            episode, mean, more_capped = _window(problem, thetas, episode, config.window)
            return episode, total + mean, capped + more_capped

        start = episode, jnp.zeros(2), jnp.zeros(())
        unfinished = lambda carry: carry[0].step < carry[0].horizon
        episode, total, capped = jax.lax.while_loop(unfinished, another_window, start)
        num_windows = episode.step / config.window
        measured = _measure(eps, total / num_windows, capped / num_windows, episode, config.sigma)
        return measured._replace(inner_steps=2 * episode.step), pair

    return Estimator(lambda theta, key: samples.init(config, key), samples.spread(estimate_pair, config, mesh))


def _online(problem: InnerProblem, config: Config, mesh: Mesh, fresh_noise: bool) -> Estimator:
    _check(config)

    def estimate_pair(theta: Theta, pair: Samples):
        pair = pair._replace(draw=pair.draw + (1 if fresh_noise else pair.done))
        eps = samples.perturbation(theta, pair, config.sigma)
        thetas = _members(theta, eps)
        episode = samples.current(pair, _reset(problem, thetas, pair), config)
        weight, memory = eps, pair.memory
        if fresh_noise:
            weight = memory = jax.tree.map(lambda a, e: jnp.where(pair.done, e, a + e), memory, eps)
        episode, losses, capped = _window(problem, thetas, episode, config.window)
        measured = _measure(weight, losses, capped, episode, config.sigma)
        measured = measured._replace(inner_steps=2 * config.window)
        done = (episode.step >= episode.horizon) | measured.dead
        return measured, pair._replace(memory=memory, done=done, episode=episode)

    def init(theta, key):
        zeros = jax.tree.map(jnp.zeros_like, theta)
        start = lambda pair: _reset(problem, _members(theta, zeros), pair)
        return samples.init(config, key, start, zeros if fresh_noise else ())

    return Estimator(init, samples.spread(estimate_pair, config, mesh))


def _check(config: Config) -> None:
    if not config.sigma:
        raise UserError("evolution strategies need a sigma above 0")


def _members(theta: Theta, eps: Theta) -> Theta:
    """theta + eps and theta - eps on a new leading axis of 2."""
    return jax.tree.map(lambda t, e: jnp.stack([t + e, t - e]), theta, eps)


def _reset(problem: InnerProblem, thetas: Theta, pair: Samples) -> Episode:
    return jax.vmap(problem.reset, in_axes=(0, None), out_axes=MEMBERS)(thetas, samples.subkey(pair, "episode"))


def _window(problem: InnerProblem, thetas: Theta, episode: Episode, num_steps: int):
    """Both members of one pair for a window: (episode, (2,) mean losses, fraction capped)."""
    step = jax.vmap(problem.step, in_axes=(0, MEMBERS), out_axes=(MEMBERS, 0))

    def body(episode, _):
        episode, losses = step(thetas, episode)
        return episode, samples.cap(losses, problem.worst)

    episode, (losses, capped) = jax.lax.scan(body, episode, length=num_steps)
    return episode, jnp.mean(losses, axis=0), jnp.mean(capped)


def _measure(weight: Theta, losses, capped, episode: Episode, sigma: float) -> Measured:
    difference = losses[0] - losses[1]
    return Measured(
        grad=jax.tree.map(lambda w: w * difference / (2 * sigma**2), weight),
        valid=jnp.isfinite(difference),
        dead=samples.is_dead(episode),
        capped=capped,
        inner_steps=0,
        metrics={"meta_loss": jnp.mean(losses), "difference": jnp.abs(difference)},
    )
