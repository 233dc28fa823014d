"""The LASSO: its scaling, its two parts, and the settings it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tasks import Lasso
from tasks.lasso import largest_eigenvalue

KEY = jax.random.key(0)


def test_the_matrix_has_norm_one_and_the_target_a_sparse_solution():
    task = Lasso(rows=30, columns=12, nonzeros=3, l1=0.0)
    problem = task.sample(KEY)
    assert 0.999 < np.linalg.norm(problem.matrix, 2) < 1 + 1e-5
    truth = np.linalg.lstsq(problem.matrix, problem.target)[0]  # unique: more rows than columns
    assert np.sum(np.abs(truth) > 1e-3) == 3
    np.testing.assert_allclose(task.loss(problem, {"x": jnp.array(truth)}, KEY, "valid"), 0.0, atol=1e-8)


def test_a_step_is_a_step_of_the_published_problem():
    task = Lasso(rows=4, columns=6, nonzeros=2)
    problem = task.sample(KEY)
    columns = np.linalg.norm(problem.matrix, axis=0)
    np.testing.assert_allclose(columns, columns[0], rtol=1e-5)  # those of W have length 1
    lipschitz = 1 / columns[0] ** 2
    w, target = problem.matrix / columns[0], problem.target * columns[0]
    published = lambda z: 0.5 * jnp.sum((w @ z - target) ** 2)
    z = jax.random.normal(KEY, (6,))
    ours = task.loss(problem, {"x": lipschitz * z}, KEY)
    np.testing.assert_allclose(ours, lipschitz * published(z), rtol=1e-5)
    step = jax.grad(task.loss, argnums=1)(problem, {"x": lipschitz * z}, KEY)["x"]
    np.testing.assert_allclose(step, jax.grad(published)(z), rtol=1e-4, atol=1e-5)  # L / L of the steps


def test_training_sees_the_smooth_part_alone():
    task = Lasso()
    problem, params = task.sample(KEY), {"x": jnp.arange(40.0)}
    loss = lambda split: task.loss(problem, params, KEY, split)
    np.testing.assert_allclose(loss("valid") - loss("train"), 0.1 * 780, rtol=1e-4)  # of losses of 1e4
    assert loss("valid") == loss("test") == task.evaluate(problem, params, "train")["loss"]


@pytest.mark.parametrize("dim", [1, 20])
def test_the_largest_eigenvalue_is_bounded_closely_from_above(dim):
    for matrix in (jnp.eye(dim) * 7.0, jnp.cov(jax.random.normal(KEY, (dim, 30))).reshape(dim, dim)):
        exact = np.linalg.eigvalsh(np.asarray(matrix, np.float64))[-1]
        assert exact * (1 - 1e-5) <= largest_eigenvalue(matrix) <= exact * dim ** (1 / 4096) * (1 + 1e-5)


@pytest.mark.parametrize("settings", [{"nonzeros": 41}, {"nonzeros": 0}, {"rows": 0}, {"l1": -0.1}, {"noise": -1.0}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match="need .*got Lasso"):
        Lasso(**settings)
