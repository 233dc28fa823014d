"""Inner problems with known answers, on which estimators are compared.

They are deterministic: all variance comes from the estimator.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from metaopt.core import Episode, InnerProblem, Key, Learner, PyTree, Theta

NEVER = 2**30  # a horizon in inner steps that is not reached


def quadratic(
    hessian: jax.Array, inputs: jax.Array, start: jax.Array, goal: jax.Array, rate: float, horizon: int
) -> InnerProblem:
    """x <- x - rate (H x - B theta) from ``start``, loss 1/2 |x - goal|^2 after the step.

    The meta-loss is exactly quadratic in theta, so the mean of every unbiased estimator is the
    true gradient for any sigma.

    Args:
      hessian: matrix H (dim, dim).
      inputs: matrix B (dim, P).
      start: first inner state (dim,).
      goal: minimum of the loss (dim,).
      rate: learning rate of the inner steps.
      horizon: length of an episode in inner steps.
    """

    def loss(x: jax.Array) -> jax.Array:
        return 0.5 * jnp.sum((x - goal) ** 2)

    def step(theta: Theta, episode: Episode) -> tuple[Episode, jax.Array]:
        x = episode.inner
        x = x - rate * (hessian @ x - inputs @ theta)
        return episode._replace(step=episode.step + 1, inner=x), loss(x)

    def final(episode: Episode) -> jax.Array:
        return loss(episode.inner)

    learner = Learner(
        params=lambda episode: episode.inner, loss=lambda episode, x: loss(x), outputs=lambda episode, x: x[None]
    )
    return InnerProblem(_reset_to(jnp.asarray(start), horizon), step, longest=horizon, final=final, learner=learner)


def influence_balancing(window: int, horizon: int = NEVER) -> InnerProblem:
    """s <- A s + c theta with 23 states, loss 1/2 (s_1 - 1)^2 at the end of each window.

    A is 1/2 on the diagonal and on the superdiagonal, c is +1 for the first 10 states and -1
    for the rest. theta increases s_1 for many steps, but decreases it in the long run: a
    truncated gradient has the wrong sign. The best theta is -1/6, where s_1 converges to 1.
    The usual initial theta, of shape (1,), is 0.5.

    Args:
      window: truncation length in inner steps.
      horizon: length of an episode in inner steps.

    Source: Tallec & Ollivier, arXiv:1702.05043.
    """
    num = 23
    transition = 0.5 * (jnp.eye(num) + jnp.eye(num, k=1))
    signs = jnp.where(jnp.arange(num) < 10, 1.0, -1.0)

    def step(theta: Theta, episode: Episode) -> tuple[Episode, jax.Array]:
        state = transition @ episode.inner + signs * theta
        num_steps = episode.step + 1
        # The mean over the steps of a window is then the loss at its end.
        loss = jnp.where(num_steps % window == 0, window * 0.5 * (state[0] - 1) ** 2, 0.0)
        return episode._replace(step=num_steps, inner=state), loss

    return InnerProblem(_reset_to(jnp.ones(num), horizon), step)


def toy_regression(horizon: int = 100) -> InnerProblem:
    """Gradient descent on a surface of two parameters with a wavy valley; theta (2,) is a learning-rate schedule.

        f(x, y) = sqrt(x^2 + 5) - sqrt(5) + sin(y)^2 exp(-5 x^2) + |y - 100| / 4
        rate    = (1 - t / T) exp(theta_0) + t / T exp(theta_1)

    starting from (1, 1), loss f after the step. The meta-loss is chaotic: local gradients carry
    no information about its shape. The usual initial theta is (-4, -4).

    Args:
      horizon: length of an episode in inner steps, T.

    Source: Vicol et al., arXiv:2112.13835; Metz et al., arXiv:1810.10180.
    """

    def surface(point: jax.Array) -> jax.Array:
        x, y = point
        return jnp.sqrt(x**2 + 5) - 5**0.5 + jnp.sin(y) ** 2 * jnp.exp(-5 * x**2) + 0.25 * jnp.abs(y - 100)

    def step(theta: Theta, episode: Episode) -> tuple[Episode, jax.Array]:
        fraction = episode.step / horizon
        rate = (1 - fraction) * jnp.exp(theta[0]) + fraction * jnp.exp(theta[1])
        point = episode.inner - rate * jax.grad(surface)(episode.inner)
        return episode._replace(step=episode.step + 1, inner=point), surface(point)

    return InnerProblem(_reset_to(jnp.ones(2), horizon), step, longest=horizon)


def _reset_to(start: PyTree, horizon: int) -> Callable[[Theta, Key, jax.Array | int], Episode]:
    def reset(theta: Theta, key: Key, outer_step: jax.Array | int) -> Episode:
        del theta, outer_step
        return Episode(key, jnp.int32(0), jnp.int32(horizon), (), start)

    return reset
