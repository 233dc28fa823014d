"""What the estimators are compared on: inner problems with their theta and sigma."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from meta_train import estimators, outer
from meta_train.estimators.samples import Sampling
from meta_train.inner import episodes, toys
from meta_train.inner.episodes import Episodes
from meta_train.parallel import devices
from metaopt import families
from metaopt.core import InnerProblem, Theta
from tasks import ImageMLP


class Studied(NamedTuple):
    """An inner problem at one theta, held fixed."""

    problem: InnerProblem
    theta: Theta
    horizon: int  # inner steps of every episode
    sigma: float


def quadratic(horizon: int = 128, dim: int = 10) -> Studied:
    """Gradient descent on a quadratic that theta shifts; it forgets in about ten steps."""
    problem = toys.quadratic(
        jnp.diag(jnp.geomspace(0.2, 1.0, dim)), jnp.eye(dim), jnp.ones(dim), jnp.zeros(dim), 0.5, horizon
    )
    return Studied(problem, jax.random.normal(jax.random.key(0), (dim,)), horizon, 0.1)


def influence_balancing(horizon: int = 128) -> Studied:
    """One meta-parameter, whose influence changes its sign with time; the loss counts at every step."""
    return Studied(toys.influence_balancing(1, horizon), jnp.array([0.5]), horizon, 0.1)


def learned_optimizer(sigma: float, horizon: int = 64) -> Studied:
    """A fresh ``small_fc`` with 4 units trains networks 64-16-10 on digits; the meta-loss is the mean training loss.

    The networks have tanh units. With ReLU, whose gradients jump, the variance that was
    measured at one theta and sigma = 0.001 was ten times that of the closed form.
    """
    optimizer = families.build("small_fc", hidden=4, step_multiplier=0.01)
    task = ImageMLP(width=16, batch_size=32, activations=("tanh",))
    problem = episodes.build(optimizer, task, Episodes(horizon, horizon, split="train", objective="linear"))
    return Studied(problem, optimizer.init(jax.random.key(0)), horizon, sigma)


def meta_trained(studied: Studied, after: Sequence[int], sigma: float) -> tuple[list[Studied], list[float]]:
    """The same ``after`` so many outer steps of ES-Single, and the meta-loss of the first step and of those."""
    sampling = Sampling(num_samples=16, window=studied.horizon // 4, sigma=sigma)
    estimator = estimators.build("es_single", studied.problem, sampling, devices.mesh(1))
    program = outer.build([estimator], optax.adam(1e-2), clip=1.0)

    def body(state, _):
        state, metrics = program.step(state)
        return state, (state.theta, metrics["meta_loss"])

    state = program.init(studied.theta, jax.random.key(1))
    thetas, losses = jax.jit(lambda state: jax.lax.scan(body, state, length=max(after))[1])(state)
    at = lambda n: studied._replace(theta=jax.tree.map(lambda x: x[n - 1], thetas))
    return [at(n) for n in after], [float(losses[max(n - 1, 0)]) for n in (0, *after)]
