"""The outer loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from meta_train import outer
from meta_train.estimators import ESTIMATORS
from meta_train.estimators.samples import Sampling
from meta_train.outer import OuterLoop
from meta_train.parallel import devices
from metaopt.core import Estimator
from metaopt.errors import UserError
from tests.meta_train.problems import THETA, linear_system, mean_loss


def fixed(grad, num_valid=1.0):
    """An estimator that always answers the same."""
    metrics = {"meta_loss": jnp.float32(0), "inner_steps": jnp.float32(1), "num_valid": jnp.float32(num_valid)}
    return Estimator(lambda theta, key: (), lambda theta, state, key: (jnp.array(grad), state, metrics))


def one_step(estimators, tx, clip=10.0):
    program = outer.build(estimators, tx, clip)
    return jax.jit(program.step)(program.init(THETA, jax.random.key(0)))


def test_problems_are_averaged_and_those_without_a_sample_left_out():
    estimators = [fixed([1.0, 0.0]), fixed([0.0, 3.0]), fixed([9.0, 9.0], num_valid=0.0)]
    state, metrics = one_step(estimators, optax.sgd(1.0))
    np.testing.assert_allclose(state.theta, THETA - jnp.array([0.5, 1.5]))
    assert metrics["skipped"] == 0


def test_each_problem_is_clipped_by_itself():
    state, metrics = one_step([fixed([30.0, 40.0]), fixed([0.0, 0.5])], optax.sgd(1.0), clip=1.0)
    np.testing.assert_allclose(state.theta, THETA - (jnp.array([0.6, 0.8]) + jnp.array([0.0, 0.5])) / 2, rtol=1e-6)
    assert metrics["problem_0/grad_norm"] == 50.0


@pytest.mark.parametrize("estimator", [fixed([1.0, 1.0], num_valid=0.0), fixed([jnp.nan, 1.0])])
def test_without_a_usable_gradient_nothing_moves(estimator):
    tx = optax.adam(0.1)
    state, metrics = one_step([estimator], tx)
    np.testing.assert_array_equal(state.theta, THETA)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, tx.init(THETA))
    assert metrics["skipped"] == 1 and state.step == 1


def test_a_dispatch_is_that_many_single_steps_and_lowers_the_meta_loss():
    mesh = devices.mesh(1)
    estimator = ESTIMATORS["es_single"](linear_system(6), Sampling(16, 3, 0.05), mesh)
    tx = outer.optimizer(OuterLoop(learning_rate=0.05, warmup=2, outer_steps=40))
    program = outer.build([estimator], tx, 1.0)
    start = jax.jit(lambda: program.init(THETA, jax.random.key(0)))  # fresh buffers: one is donated
    dispatched, metrics = outer.build_dispatch(program, 40, mesh)(start())
    single, step = start(), jax.jit(program.step)
    for _ in range(40):
        single, _ = step(single)
    np.testing.assert_allclose(dispatched.theta, single.theta, rtol=1e-5)
    assert metrics["meta_loss"].shape == (40,)
    assert mean_loss(dispatched.theta, 6) < 0.8 * mean_loss(THETA, 6)


def test_a_run_compiles_once():
    mesh = devices.mesh(8)
    estimator = ESTIMATORS["pes"](linear_system(6), Sampling(16, 3, 0.05), mesh)
    program = outer.build([estimator], optax.sgd(0.1), 1.0)
    dispatch = outer.build_dispatch(program, 2, mesh)
    state = jax.jit(lambda: program.init(THETA, jax.random.key(0)), out_shardings=outer.shardings(mesh))()
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
    )
    for _ in range(3):
        state, _ = dispatch(state)
    assert len(compiled) == 1


def test_warm_up_and_cosine():
    tx = outer.optimizer(OuterLoop(learning_rate=1.0, warmup=10, outer_steps=100))
    state, sizes = tx.init(THETA), []
    for _ in range(100):
        update, state = tx.update(jnp.array([1.0, 0.0]), state, THETA)
        sizes.append(-float(update[0]))
    # Adam of a constant gradient moves by the learning rate.
    np.testing.assert_allclose([sizes[0], sizes[5], sizes[10]], [0.0, 0.5, 1.0], atol=1e-4)
    np.testing.assert_allclose(sizes[55], 0.5, atol=0.02)
    assert sizes[99] < 1e-3


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(UserError, match="warmup < outer_steps, got 10 and 10"):
        OuterLoop(warmup=10, outer_steps=10)
