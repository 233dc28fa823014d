"""Inner problems with known answers: what estimators are compared on.

They have no randomness of their own: all variance is the estimator's.
"""

import jax
import jax.numpy as jnp

from metaopt.core import Episode, InnerProblem, Learner

NEVER = 2**30  # a horizon in inner steps that is not reached


def quadratic(hessian, inputs, start, goal, rate: float, horizon: int) -> InnerProblem:
    """x <- x - rate (H x - B theta) from ``start``, loss 1/2 |x - goal|^2 after the step.

    The meta-loss is exactly quadratic in theta, so every unbiased estimator has the true
    gradient as its mean whatever sigma.

    Args:
      hessian: H (dim, dim).
      inputs: B (dim, P).
      start, goal: (dim,).
      rate: of the inner steps.
      horizon: inner steps of an episode.
    """
    loss = lambda x: 0.5 * jnp.sum((x - goal) ** 2)

    def step(theta, episode: Episode):
        x = episode.inner
        x = x - rate * (hessian @ x - inputs @ theta)
        return episode._replace(step=episode.step + 1, inner=x), loss(x)

    learner = Learner(lambda e: e.inner, lambda e, x: loss(x), lambda e, x: x[None])
    final = lambda e: loss(e.inner)
    return InnerProblem(_always(jnp.asarray(start), horizon), step, longest=horizon, final=final, learner=learner)


def influence_balancing(window: int, horizon: int = NEVER) -> InnerProblem:
    """s <- A s + c theta with 23 states, loss 1/2 (s_1 - 1)^2 at the end of each window.

    A is 1/2 on the diagonal and on the one above it, c is +1 for the first 10 states and -1
    for the rest. For many steps theta pushes s_1 up before it pulls it down for good: a
    truncated gradient has the wrong sign. The best theta is -1/6, where s_1 rests at 1;
    theta (1,) is begun from 0.5.

    Source: Tallec & Ollivier, arXiv:1702.05043.
    """
    num = 23
    transition = 0.5 * (jnp.eye(num) + jnp.eye(num, k=1))
    signs = jnp.where(jnp.arange(num) < 10, 1.0, -1.0)

    def step(theta, episode: Episode):
        state = transition @ episode.inner + signs * theta
        now = episode.step + 1
        # A mean over the steps of a window is then the loss at its end.
        loss = jnp.where(now % window == 0, window * 0.5 * (state[0] - 1) ** 2, 0.0)
        return episode._replace(step=now, inner=state), loss

    return InnerProblem(_always(jnp.ones(num), horizon), step)


def toy_regression(horizon: int = 100) -> InnerProblem:
    """SGD on a surface of two parameters with a wavy valley; theta (2,) is a learning-rate schedule.

        f(x, y) = sqrt(x^2 + 5) - sqrt(5) + sin(y)^2 exp(-5 x^2) + |y - 100| / 4
        rate    = (1 - t / T) exp(theta_0) + t / T exp(theta_1)

    from (1, 1), loss f after the step. The meta-loss is chaotic: local gradients say
    nothing of its shape. theta is begun from (-4, -4).

    Source: Vicol et al., arXiv:2112.13835; Metz et al., arXiv:1810.10180.
    """

    def surface(point):
        x, y = point
        return jnp.sqrt(x**2 + 5) - 5**0.5 + jnp.sin(y) ** 2 * jnp.exp(-5 * x**2) + 0.25 * jnp.abs(y - 100)

    def step(theta, episode: Episode):
        fraction = episode.step / horizon
        rate = (1 - fraction) * jnp.exp(theta[0]) + fraction * jnp.exp(theta[1])
        point = episode.inner - rate * jax.grad(surface)(episode.inner)
        return episode._replace(step=episode.step + 1, inner=point), surface(point)

    return InnerProblem(_always(jnp.ones(2), horizon), step, longest=horizon)


def _always(start, horizon: int):
    def reset(theta, key, outer_step) -> Episode:
        del theta, outer_step
        return Episode(key, jnp.int32(0), jnp.int32(horizon), (), start)

    return reset
