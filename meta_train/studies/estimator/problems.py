"""The inner problems on which estimators are compared, with their theta and sigma."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from meta_train import estimators, outer
from meta_train.estimators.samples import Sampling
from meta_train.inner import episodes, toys
from meta_train.inner.episodes import Episodes
from meta_train.outer import TrainState
from meta_train.parallel import devices
from metaopt import families
from metaopt.core import InnerProblem, Theta
from tasks import ImageMLP


class Studied(NamedTuple):
    """An inner problem at a fixed theta."""

    problem: InnerProblem
    theta: Theta
    horizon: int  # inner steps of every episode
    sigma: float  # standard deviation of the perturbations of theta


def quadratic(horizon: int = 128, dim: int = 10) -> Studied:
    """Gradient descent on a quadratic that theta shifts; the influence of theta decays in about ten steps."""
    problem = toys.quadratic(
        jnp.diag(jnp.geomspace(0.2, 1.0, dim)), jnp.eye(dim), jnp.ones(dim), jnp.zeros(dim), 0.5, horizon
    )
    return Studied(problem, jax.random.normal(jax.random.key(0), (dim,)), horizon, 0.1)


def influence_balancing(horizon: int = 128) -> Studied:
    """One meta-parameter, whose influence changes its sign with time; the loss of every step counts."""
    return Studied(toys.influence_balancing(1, horizon), jnp.array([0.5]), horizon, 0.1)


def learned_optimizer(sigma: float, horizon: int = 64) -> Studied:
    """A fresh ``small_fc`` with 4 units trains networks 64-16-10 on digits; the meta-loss is the mean training loss.

    The networks have tanh units. With ReLU, whose gradient is not continuous, the variance measured
    at one theta and sigma = 0.001 was ten times that of the closed form.
    """
    optimizer = families.build("small_fc", hidden=4, step_multiplier=0.01)
    task = ImageMLP(width=16, batch_size=32, activations=("tanh",))
    problem = episodes.build(optimizer, task, Episodes(horizon, horizon, split="train", objective="linear"))
    return Studied(problem, optimizer.init(jax.random.key(0)), horizon, sigma)


def meta_trained(studied: Studied, after: Sequence[int], sigma: float) -> tuple[list[Studied], list[float]]:
    """Meta-trains the theta of ``studied`` with ES-Single.

    Args:
      studied: inner problem with the initial theta.
      after: numbers of outer steps.
      sigma: standard deviation of the perturbations in meta-training.

    Returns:
      The problem with theta after each number of outer steps; and the meta-losses of the first
      outer step and of these.
    """
    sampling = Sampling(num_samples=16, window=studied.horizon // 4, sigma=sigma)
    estimator = estimators.build("es_single", studied.problem, sampling, devices.mesh(1))
    program = outer.build([estimator], optax.adam(1e-2), clip=1.0)

    def outer_step(state: TrainState, _: None) -> tuple[TrainState, tuple[Theta, jax.Array]]:
        state, metrics = program.step(state)
        return state, (state.theta, metrics["meta_loss"])

    @jax.jit
    def train(state: TrainState) -> tuple[Theta, jax.Array]:
        return jax.lax.scan(outer_step, state, length=max(after))[1]

    thetas, losses = train(program.init(studied.theta, jax.random.key(1)))
    trained = [studied._replace(theta=jax.tree.map(lambda x, n=n: x[n - 1], thetas)) for n in after]
    return trained, [float(losses[max(n - 1, 0)]) for n in (0, *after)]
