"""The outer loop: estimate the meta-gradient and update theta, many outer steps in one dispatch."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from meta_train.parallel import devices
from metaopt.core import Estimator, Key, Theta
from metaopt.errors import UserError


@dataclasses.dataclass(frozen=True)
class OuterLoop:
    """Settings of the outer optimizer: AdamW, a linear warm-up and a cosine decay to zero."""

    outer_steps: int = 1000  # number of outer steps of the run, at the end of which the cosine decay reaches zero
    learning_rate: float = 3e-3  # learning rate at the end of the warm-up
    warmup: int = 100  # outer steps of the warm-up
    clip: float = 1.0  # largest norm of the meta-gradient of each inner problem
    weight_decay: float = 0.0
    seed: int = 0  # seed of the initial theta and of every sample

    def __post_init__(self) -> None:
        if self.outer_steps < 1:
            raise UserError(f"outer_steps must be at least 1, got {self.outer_steps}")
        if not 0 <= self.warmup < self.outer_steps:
            raise UserError(f"need 0 <= warmup < outer_steps, got {self.warmup} and {self.outer_steps}")
        if not (0 < self.learning_rate < math.inf and 0 < self.clip < math.inf):
            raise UserError(f"learning_rate and clip must be above 0, got {self.learning_rate} and {self.clip}")
        if not 0 <= self.weight_decay < math.inf:
            raise UserError(f"weight_decay must be finite and not negative, got {self.weight_decay}")
        if abs(self.seed) >= 2**31:
            raise UserError(f"seed must be below 2^31, got {self.seed}")


@struct.dataclass
class TrainState:
    """The complete state of a run between two outer steps."""

    # Any, not Array, because the same container holds shardings.
    theta: Theta
    opt_state: Any  # state of the outer optimizer
    estimators: Any  # tuple of estimator states, one for each inner problem
    step: Any  # () int32, number of outer steps so far


class Program(NamedTuple):
    """An outer loop with a meta-gradient estimator, see ``build``, or with a search strategy.

    Attributes:
      init: ``(theta, key) -> TrainState``, the state before the first outer step.
      step: ``TrainState -> (TrainState, metrics)``, one outer step; metrics are () arrays.
    """

    init: Callable[[Theta, Key], TrainState]
    step: Callable[[TrainState], tuple[TrainState, dict[str, jax.Array]]]


def optimizer(config: OuterLoop) -> optax.GradientTransformation:
    """AdamW with a linear warm-up and a cosine decay to zero."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0 if config.warmup else config.learning_rate, config.learning_rate, config.warmup, config.outer_steps
    )
    return optax.adamw(schedule, weight_decay=config.weight_decay)


def build(estimators: Sequence[Estimator], tx: optax.GradientTransformation, clip: float) -> Program:
    """The outer loop with meta-gradients.

        g = mean over inner problems i of g_i min(1, clip / |g_i|);   theta <- theta + tx(g)

    The gradient of each problem is clipped separately: the norms are mostly noise, and one noisy
    problem must not dominate the mean. An inner problem without a valid sample is excluded from
    the mean. If no problem has a valid sample, or g is not finite, theta and the state of the
    outer optimizer do not change.

    The metrics of problem i are named ``problem_i/...``, scalar entries of theta ``theta/...``.

    Args:
      estimators: meta-gradient estimators, one for each inner problem.
      tx: outer optimizer.
      clip: largest norm of the meta-gradient of each inner problem.
    """

    def init(theta: Theta, key: Key) -> TrainState:
        states = tuple(e.init(theta, jax.random.fold_in(key, i)) for i, e in enumerate(estimators))
        return TrainState(theta, tx.init(theta), states, jnp.zeros((), jnp.int32))

    def step(state: TrainState) -> tuple[TrainState, dict[str, jax.Array]]:
        grads, states, metrics = [], [], {}
        for i, estimator in enumerate(estimators):
            grad, new, measured = estimator.estimate(state.theta, state.estimators[i], state.step)
            norm = optax.tree.norm(grad)
            shrink = jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-12))
            grads.append(jax.tree.map(lambda g, s=shrink: s * g, grad))
            states.append(new)
            metrics |= {f"problem_{i}/{name}": value for name, value in measured.items()}
            metrics[f"problem_{i}/grad_norm"] = norm
        usable = jnp.stack([metrics[f"problem_{i}/num_valid"] > 0 for i in range(len(estimators))])
        weights = usable / jnp.maximum(jnp.sum(usable), 1)
        grad = jax.tree.map(lambda *gs: sum(w * g for w, g in zip(weights, gs, strict=True)), *grads)
        norm = optax.tree.norm(grad)
        accept = jnp.any(usable) & jnp.isfinite(norm)
        # A gradient that is not finite is replaced by zero to keep NaN out of the select below.
        safe = jax.tree.map(lambda g: jnp.where(accept, g, 0.0), grad)
        updates, opt_state = tx.update(safe, state.opt_state, state.theta)
        moved = (optax.apply_updates(state.theta, updates), opt_state)
        theta, opt_state = jax.tree.map(lambda n, o: jnp.where(accept, n, o), moved, (state.theta, state.opt_state))
        losses = jnp.stack([metrics[f"problem_{i}/meta_loss"] for i in range(len(estimators))])
        metrics |= {
            # NaN where no problem is usable, because zero would look like the best loss so far.
            "meta_loss": jnp.where(jnp.any(usable), jnp.sum(weights * jnp.where(usable, losses, 0.0)), jnp.nan),
            "grad_norm": norm,
            "inner_steps": sum(metrics[f"problem_{i}/inner_steps"] for i in range(len(estimators))),
            "theta_norm": optax.tree.norm(theta),
            "skipped": 1.0 - accept,
        }
        for path, value in jax.tree.leaves_with_path(theta):
            if value.ndim == 0:  # learned hyper-parameters are logged one by one
                metrics[f"theta/{jax.tree_util.keystr(path, simple=True, separator='/')}"] = value
        return TrainState(theta, opt_state, tuple(states), state.step + 1), metrics

    return Program(init, step)


def shardings(mesh: Mesh) -> TrainState:
    """The shardings of a state: estimator states by sample over the mesh, all else replicated.

    Everything that creates a state uses them, so that no dispatch is compiled twice.
    """
    everywhere, by_sample = NamedSharding(mesh, P()), NamedSharding(mesh, P(devices.SAMPLE_AXIS))
    return TrainState(everywhere, everywhere, by_sample, everywhere)


def build_dispatch(program: Program, length: int, mesh: Mesh) -> jax.stages.Wrapped:
    """Compiles ``length`` outer steps into one dispatch; the state is donated.

    Args:
      program: outer loop.
      length: outer steps of a dispatch.
      mesh: devices that the samples are sharded over.

    Returns:
      A jitted function ``state -> (state, metrics)`` with metrics of shape (length,).
    """
    placed = shardings(mesh)

    def dispatch(state: TrainState) -> tuple[TrainState, dict[str, jax.Array]]:
        return jax.lax.scan(lambda state, _: program.step(state), state, length=length)

    return jax.jit(
        dispatch,
        in_shardings=(placed,),
        out_shardings=(placed, NamedSharding(mesh, P())),
        donate_argnums=0,
    )
