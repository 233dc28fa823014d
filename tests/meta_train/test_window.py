"""Meta-objectives made of the losses of windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_train.estimators import window
from metaopt.core import Episode, InnerProblem
from metaopt.errors import UserError

LOSSES = jnp.array([5.0, 3.0, 4.0, 2.0, 6.0, 2.5])
HORIZON = len(LOSSES)


def tape(losses=LOSSES, worst=float("inf"), final=True) -> InnerProblem:
    """Plays losses from a list; a state measured on fresh batches is a tenth lower."""

    def reset(theta, key, outer_step):
        del theta, outer_step
        return Episode(key, jnp.int32(0), jnp.int32(HORIZON), (), jnp.float32(0))

    def step(theta, episode):
        loss = theta * losses[episode.step]
        return episode._replace(step=episode.step + 1, inner=loss), loss

    return InnerProblem(reset, step, worst, final=(lambda e: e.inner - 0.1) if final else None)


def shares(combine, num_steps, **kwargs):
    """The losses of consecutive windows."""
    windows = window.build(tape(**kwargs), num_steps, combine)
    episode, losses = windows.reset(1.0, jax.random.key(0), 0), []
    for _ in range(HORIZON // num_steps):
        episode, ran = jax.jit(windows.run)(jnp.float32(1.0), episode)
        losses.append(float(ran.loss))
    return losses, ran


@pytest.mark.parametrize("num_steps", [1, 2, 3, 6])
@pytest.mark.parametrize("combine, objective", [("mean", 3.75), ("last", 2.5), ("min", 2.0), ("fresh", 2.4)])
def test_the_mean_over_windows_is_the_objective(combine, objective, num_steps):
    np.testing.assert_allclose(np.mean(shares(combine, num_steps)[0]), objective, rtol=1e-6)


def test_each_window_has_its_share():
    np.testing.assert_allclose(shares("last", 2)[0], [3 * 3.0, 3 * (2.0 - 3.0), 3 * (2.5 - 2.0)], rtol=1e-6)
    np.testing.assert_allclose(shares("min", 2)[0], [3 * 3.0, 3 * (2.0 - 3.0), 0.0], rtol=1e-6)


@pytest.mark.parametrize("combine, objective", [("mean", 20 / 6), ("last", 2.5), ("min", 2.0)])
def test_losses_beyond_the_worst_count_as_the_worst(combine, objective):
    bad = LOSSES.at[0].set(jnp.nan).at[4].set(jnp.inf)
    losses, ran = shares(combine, 3, losses=bad, worst=4.25)
    np.testing.assert_allclose(np.mean(losses), objective, rtol=1e-6)
    np.testing.assert_allclose(ran.capped, 1 / 3)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(UserError, match="did you mean 'last'"):
        window.build(tape(), 2, "lst")
    with pytest.raises(UserError, match="take combine=last"):
        window.build(tape(final=False), 2, "fresh")
