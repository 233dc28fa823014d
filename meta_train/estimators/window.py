"""One window of an episode, and how the losses in it form the meta-objective.

Every objective is the mean over the windows of an episode of one number for each window,
so that estimators that see one window at a time can use it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaopt.core import Episode, InnerProblem, Key, PyTree, Theta
from metaopt.errors import UserError, unknown

COMBINATIONS = ("mean", "last", "min", "fresh")


class WindowResult(NamedTuple):
    """The losses of one window."""

    loss: jax.Array  # () term of the meta-objective
    losses: jax.Array  # (window,) loss of each step
    capped: jax.Array  # () fraction of the losses that were replaced by the worst loss


class Window(NamedTuple):
    """An inner problem that advances one window at a time.

    Attributes:
      reset: ``(theta, key, outer_step) -> Episode``, as in InnerProblem.
      run: ``(theta, episode) -> (episode, WindowResult)``, all steps of a window.
    """

    reset: Callable[..., Episode]
    run: Callable[[Theta, Episode], tuple[Episode, WindowResult]]


class Scored(NamedTuple):
    """``inner`` of an episode whose objective compares a window with earlier ones."""

    inner: PyTree  # inner state of the problem
    score: jax.Array  # () last loss, or smallest loss so far


def build(problem: InnerProblem, num_steps: int, combine: str = "mean") -> Window:
    """Divides the episodes of an inner problem into windows of W steps.

    With losses l_t and an episode of T steps in U windows, the loss of the window that ends at t is

        mean     1/W sum of l over the window
        last     U (l_t - l_{t-W}),   l_0 = 0: the mean over windows is l_T
        fresh    the same with ``problem.final`` in place of l: measured on fresh batches
        min      U (m_t - m_{t-W}),   m_t the smallest l so far, m_0 = 0

    A loss that is above ``problem.worst`` or not finite is replaced by ``problem.worst``.

    Memory in reverse mode: the states of a window; every step is recomputed once.

    Args:
      problem: inner problem.
      num_steps: inner steps of a window.
      combine: how losses form the objective, a name in COMBINATIONS.

    Raises:
      UserError: for an unknown combination, or "fresh" without ``problem.final``.
    """
    if combine not in COMBINATIONS:
        raise unknown("combination of losses", combine, COMBINATIONS)
    if combine == "fresh" and problem.final is None:
        raise UserError("combine=fresh needs an inner problem with InnerProblem.final; take combine=last")

    @jax.checkpoint
    def step(theta: Theta, episode: Episode) -> tuple[Episode, tuple[jax.Array, jax.Array]]:
        episode, loss = problem.step(theta, episode)
        return episode, cap(loss, problem.worst)

    def steps(theta: Theta, episode: Episode) -> tuple[Episode, jax.Array, jax.Array]:
        episode, (losses, capped) = jax.lax.scan(lambda e, _: step(theta, e), episode, length=num_steps)
        return episode, losses, jnp.mean(capped)

    def run_mean(theta: Theta, episode: Episode) -> tuple[Episode, WindowResult]:
        episode, losses, capped = steps(theta, episode)
        return episode, WindowResult(jnp.mean(losses), losses, capped)

    def reset(theta: Theta, key: Key, outer_step: jax.Array | int) -> Episode:
        episode = problem.reset(theta, key, outer_step)
        score = jnp.float32(jnp.inf if combine == "min" else 0.0)
        return episode._replace(inner=Scored(episode.inner, score))

    def run_scored(theta: Theta, episode: Episode) -> tuple[Episode, WindowResult]:
        before = episode.inner.score
        ended, losses, capped = steps(theta, episode._replace(inner=episode.inner.inner))
        if combine == "min":
            score = jnp.minimum(before, jnp.min(losses))
            before = jnp.where(episode.step == 0, 0.0, before)
        else:
            score = cap(problem.final(ended), problem.worst)[0] if problem.final and combine == "fresh" else losses[-1]
        num_windows = -(-episode.horizon // num_steps)
        loss = num_windows * (score - before)
        return ended._replace(inner=Scored(ended.inner, score)), WindowResult(loss, losses, capped)

    return Window(problem.reset, run_mean) if combine == "mean" else Window(reset, run_scored)


def run_episode(
    windows: Window, num_steps: int, theta: Theta, episode: Episode
) -> tuple[Episode, jax.Array, jax.Array]:
    """Runs windows of ``num_steps`` steps until the end of the episode.

    Returns:
      The episode at its end, its () meta-objective, and the () fraction of its losses that were
      replaced by the worst loss.
    """

    def is_unfinished(carry: tuple[Episode, jax.Array, jax.Array]) -> jax.Array:
        episode, _, _ = carry
        return episode.step < episode.horizon

    def next_window(carry: tuple[Episode, jax.Array, jax.Array]) -> tuple[Episode, jax.Array, jax.Array]:
        episode, total, capped = carry
        episode, result = windows.run(theta, episode)
        return episode, total + result.loss, capped + result.capped

    episode, total, capped = jax.lax.while_loop(is_unfinished, next_window, (episode, jnp.zeros(()), jnp.zeros(())))
    num_windows = episode.step / num_steps
    return episode, total / num_windows, capped / num_windows


def cap(losses: jax.Array, worst: float) -> tuple[jax.Array, jax.Array]:
    """Replaces losses that are above ``worst`` or not finite by ``worst``: (losses, 1.0 where replaced)."""
    capped = ~(losses <= worst)  # also where the loss is NaN
    return jnp.where(capped, worst, losses), jnp.float32(capped)
