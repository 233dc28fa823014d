"""One window of an episode, and how its losses make a meta-objective.

Every objective is written as one number a window whose mean over the windows of an
episode is the objective, so that estimators that see a window at a time can follow it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaopt.core import Episode, InnerProblem, PyTree, Theta
from metaopt.errors import UserError, unknown

COMBINATIONS = ("mean", "last", "min", "fresh")


class WindowResult(NamedTuple):
    """What a window measured."""

    loss: jax.Array  # () its share of the meta-objective
    losses: jax.Array  # (window,) of its steps
    capped: jax.Array  # () fraction of the losses that count as the worst


class Window(NamedTuple):
    """An inner problem that advances a window at a time."""

    reset: Callable[..., Episode]  # as an InnerProblem's
    run: Callable[[Theta, Episode], tuple[Episode, WindowResult]]


class Scored(NamedTuple):
    """``inner`` of an episode whose objective looks back."""

    inner: PyTree
    score: jax.Array  # () last loss, or smallest so far


def build(problem: InnerProblem, num_steps: int, combine: str = "mean") -> Window:
    """Cuts an inner problem into windows of W steps.

    With losses l_t and an episode of T steps in U windows, the loss of the window that ends at t is

        mean     1/W sum of its l
        last     U (l_t - l_{t-W}),   l_0 = 0: the mean over windows is l_T
        fresh    the same with ``problem.final`` in place of l: fresh batches
        min      U (m_t - m_{t-W}),   m_t the smallest l so far, m_0 = 0

    A loss above ``problem.worst`` or not finite counts as the worst.

    Memory in reverse mode: the states of a window; a step is run once more.

    Raises:
      UserError: for an unknown combination, or "fresh" without ``problem.final``.
    """
    if combine not in COMBINATIONS:
        raise unknown("combination of losses", combine, COMBINATIONS)
    if combine == "fresh" and problem.final is None:
        raise UserError("combine=fresh needs an inner problem that can measure its state; take combine=last")

    @jax.checkpoint
    def step(theta: Theta, episode: Episode):
        episode, loss = problem.step(theta, episode)
        return episode, cap(loss, problem.worst)

    def steps(theta: Theta, episode: Episode):
        episode, (losses, capped) = jax.lax.scan(lambda e, _: step(theta, e), episode, length=num_steps)
        return episode, losses, jnp.mean(capped)

    def run_mean(theta: Theta, episode: Episode):
        episode, losses, capped = steps(theta, episode)
        return episode, WindowResult(jnp.mean(losses), losses, capped)

    def reset(theta: Theta, key, outer_step):
        episode = problem.reset(theta, key, outer_step)
        start = jnp.float32(jnp.inf if combine == "min" else 0.0)
        return episode._replace(inner=Scored(episode.inner, start))

    def run_scored(theta: Theta, episode: Episode):
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


def run_whole(windows: Window, num_steps: int, theta: Theta, episode: Episode):
    """Window after window to the end: (episode, () meta-objective, () fraction of losses that count as the worst)."""

    def another(carry):
        episode, total, capped = carry
        episode, ran = windows.run(theta, episode)
        return episode, total + ran.loss, capped + ran.capped

    unfinished = lambda carry: carry[0].step < carry[0].horizon
    episode, total, capped = jax.lax.while_loop(unfinished, another, (episode, jnp.zeros(()), jnp.zeros(())))
    num_windows = episode.step / num_steps
    return episode, total / num_windows, capped / num_windows


def cap(losses: jax.Array, worst: float) -> tuple[jax.Array, jax.Array]:
    """Losses above ``worst`` or not finite count as ``worst``: (losses, whether they do)."""
    capped = ~(losses <= worst)  # also where the loss is NaN
    return jnp.where(capped, worst, losses), jnp.float32(capped)
