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

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from meta_train.devices import PAIR_AXIS
from metaopt.core import Episode, Estimator, InnerProblem, PyTree, Theta
from metaopt.errors import UserError

# Both members share all of an episode but ``inner``, which has a leading axis of 2.
MEMBERS = Episode(key=None, step=None, horizon=None, problem=None, inner=0)


@dataclasses.dataclass(frozen=True)
class Config:
    num_pairs: int = 16
    window: int = 50  # inner steps between two outer steps
    sigma: float = 0.01  # standard deviation of the perturbation
    staggered: bool = True  # first episodes are cut short, so that pairs leave lockstep

    def __post_init__(self):
        if self.num_pairs < 1 or self.window < 1 or self.sigma <= 0:
            raise UserError(f"num_pairs and window must be at least 1 and sigma positive, got {self}")


class Pairs(NamedTuple):
    """State of all pairs; leading axis (num_pairs,), spread over the mesh."""

    key: jax.Array  # of each pair: its numbers do not depend on the device it is on
    draw: jax.Array  # int32, perturbations drawn so far
    accumulated: Theta  # sum of the perturbations of this episode; () if not needed
    done: PyTree  # bool, the next window starts a new episode
    episode: PyTree  # an Episode; inner has axes (num_pairs, 2); () if nothing is kept


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

    def estimate_pair(theta: Theta, pair: Pairs):
        pair = pair._replace(draw=pair.draw + 1)
        eps = _perturbation(theta, pair, config.sigma)
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
        return _sample(eps, total / num_windows, capped / num_windows, episode, config.sigma), pair

    def init(theta, key):
        del theta
        return Pairs(_pair_keys(key, config), jnp.zeros(config.num_pairs, jnp.int32), (), (), ())

    return Estimator(init, _spread(estimate_pair, config, mesh))


def _online(problem: InnerProblem, config: Config, mesh: Mesh, fresh_noise: bool) -> Estimator:
    def estimate_pair(theta: Theta, pair: Pairs):
        first = pair.draw == 0
        pair = pair._replace(draw=pair.draw + (1 if fresh_noise else pair.done))
        eps = _perturbation(theta, pair, config.sigma)
        thetas = _members(theta, eps)
        # Only windows start episodes: a reset inside the scan would run at every step.
        fresh = _reset(problem, thetas, pair)
        if config.staggered:
            num_windows = -(-fresh.horizon // config.window)
            cut = config.window * jax.random.randint(_subkey(pair, "cut"), (), 1, num_windows + 1)
            fresh = fresh._replace(horizon=jnp.where(first, cut, fresh.horizon))
        episode = _where(pair.done, fresh, pair.episode)
        weight, accumulated = eps, pair.accumulated
        if fresh_noise:
            weight = accumulated = jax.tree.map(lambda a, e: jnp.where(pair.done, e, a + e), accumulated, eps)
        episode, losses, capped = _window(problem, thetas, episode, config.window)
        sample = _sample(weight, losses, capped, episode, config.sigma)
        done = (episode.step >= episode.horizon) | (sample["dead"] > 0)
        return sample, pair._replace(accumulated=accumulated, done=done, episode=episode)

    def init(theta, key):
        num_pairs = config.num_pairs
        pairs = Pairs(_pair_keys(key, config), jnp.zeros(num_pairs, jnp.int32), (), jnp.ones(num_pairs, bool), ())
        # Never run: ``done`` is set, so the first window starts afresh.
        placeholder = jax.vmap(lambda pair: _reset(problem, _members(theta, jax.tree.map(jnp.zeros_like, theta)), pair))
        zeros = jax.tree.map(lambda t: jnp.zeros((num_pairs, *t.shape), t.dtype), theta)
        return pairs._replace(accumulated=zeros if fresh_noise else (), episode=placeholder(pairs))

    return Estimator(init, _spread(estimate_pair, config, mesh))


def _spread(estimate_pair, config: Config, mesh: Mesh):
    """Runs every pair on its device and averages over all: one all-reduce per estimate."""
    num_devices = mesh.shape[PAIR_AXIS]
    if config.num_pairs % num_devices:
        raise UserError(f"num_pairs must be a multiple of the {num_devices} devices, got {config.num_pairs}")

    def on_one_device(theta, pairs):
        samples, pairs = jax.vmap(estimate_pair, in_axes=(None, 0))(theta, pairs)
        return jax.lax.psum(jax.tree.map(lambda x: jnp.sum(x, axis=0), samples), PAIR_AXIS), pairs

    run = jax.shard_map(
        on_one_device, mesh=mesh, in_specs=(P(), P(PAIR_AXIS)), out_specs=(P(), P(PAIR_AXIS)), check_vma=False
    )

    def estimate(theta, state, key):
        del key  # every pair carries its own
        total, state = run(theta, state)
        num_valid = total["valid"]
        mean = lambda x: x / jnp.maximum(num_valid, 1)
        metrics = {
            "meta_loss": mean(total["loss"]),
            "difference": mean(total["difference"]),
            "num_valid": num_valid,
            "frac_dead": total["dead"] / config.num_pairs,
            "frac_capped": total["capped"] / config.num_pairs,
        }
        return jax.tree.map(mean, total["grad"]), state, metrics

    return estimate


def _pair_keys(key, config: Config):
    # By global index, not by device: the numbers are the same on any mesh.
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(config.num_pairs))


def _subkey(pair: Pairs, purpose: str):
    return jax.random.fold_in(jax.random.fold_in(pair.key, pair.draw), ("noise", "episode", "cut").index(purpose))


def _perturbation(theta: Theta, pair: Pairs, sigma: float) -> Theta:
    leaves, tree = jax.tree.flatten(theta)
    key = _subkey(pair, "noise")
    draws = [sigma * jax.random.normal(jax.random.fold_in(key, i), t.shape, t.dtype) for i, t in enumerate(leaves)]
    return tree.unflatten(draws)


def _members(theta: Theta, eps: Theta) -> Theta:
    """theta + eps and theta - eps on a new leading axis of 2."""
    return jax.tree.map(lambda t, e: jnp.stack([t + e, t - e]), theta, eps)


def _reset(problem: InnerProblem, thetas: Theta, pair: Pairs) -> Episode:
    return jax.vmap(problem.reset, in_axes=(0, None), out_axes=MEMBERS)(thetas, _subkey(pair, "episode"))


def _window(problem: InnerProblem, thetas: Theta, episode: Episode, num_steps: int):
    """Both members of one pair for a window: (episode, (2,) mean losses, fraction capped)."""
    step = jax.vmap(problem.step, in_axes=(0, MEMBERS), out_axes=(MEMBERS, 0))

    def body(episode, _):
        episode, losses = step(thetas, episode)
        capped = ~(losses <= problem.worst)  # also where the loss is NaN
        return episode, (jnp.where(capped, problem.worst, losses), jnp.mean(capped))

    episode, (losses, capped) = jax.lax.scan(body, episode, length=num_steps)
    return episode, jnp.mean(losses, axis=0), jnp.mean(capped)


def _sample(weight: Theta, losses, capped, episode: Episode, sigma: float) -> dict:
    """What one pair contributes; all zero if its losses are not finite."""
    difference = losses[0] - losses[1]
    valid = jnp.isfinite(difference)
    keep = lambda x: jnp.where(valid, x, 0.0)
    return {
        "grad": jax.tree.map(lambda w: w * keep(difference) / (2 * sigma**2), weight),
        "loss": keep(jnp.mean(losses)),
        "difference": keep(jnp.abs(difference)),
        "valid": valid.astype(jnp.float32),
        "capped": capped,
        "dead": 1.0 - _all_finite(episode.inner),
    }


def _all_finite(tree) -> jax.Array:
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in floats])).astype(jnp.float32)


def _where(condition, new, old):
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)
