"""What every task must satisfy. A task joins by its line in TASKS and an example here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tasks
from tasks import ImageConv, ImageMLP, Lasso, Quadratic, Reparametrized

EXAMPLES = {
    "lasso": Lasso(noise=0.1),
    "quadratic": Quadratic(dim=4, noise=0.1),
    "image_mlp": ImageMLP(
        width=12, depth=2, batch_size=16, min_width=4, min_depth=1, activations=("relu", "tanh"), init_spread=2.0
    ),
    "image_conv": ImageConv(channels=(3, 4), batch_size=16),
    "reparametrized": Reparametrized(ImageMLP(width=5, batch_size=16), 10.0),
}
KEY = jax.random.key(0)


@pytest.fixture(params=sorted(EXAMPLES))
def task(request):
    return EXAMPLES[request.param]


def start(task, key=KEY):
    task_params = task.sample(key)
    return task_params, task.init(task_params, key)


def test_every_registered_task_has_an_example():
    assert set(tasks.TASKS) <= set(EXAMPLES)


def test_loss_is_a_finite_float32_scalar_decided_by_the_key(task):
    task_params, params = start(task)
    loss = jax.jit(task.loss)
    first, again = loss(task_params, params, KEY), loss(task_params, params, KEY)
    other = loss(task_params, params, jax.random.key(1))
    assert first.shape == () and first.dtype == jnp.float32 and np.isfinite(first)
    assert first == again and first != other


def test_vmap_over_tasks_matches_a_loop(task):
    keys = jax.random.split(KEY, 3)

    def first_loss(key):
        task_params, params = start(task, key)
        return task.loss(task_params, params, key)

    batched, one = jax.jit(jax.vmap(first_loss))(keys), jax.jit(first_loss)
    np.testing.assert_allclose(batched, [one(k) for k in keys], rtol=1e-5)


def test_evaluate_is_fixed_and_differs_between_splits_of_data(task):
    task_params, params = start(task)
    evaluate = jax.jit(task.evaluate, static_argnums=2)
    losses = {split: float(evaluate(task_params, params, split)["loss"]) for split in ("train", "valid", "test")}
    assert all(np.isfinite(loss) for loss in losses.values())
    assert len(set(losses.values())) == (3 if task.traits()["datasets"] else 1)


def test_gradient_steps_lower_the_loss(task):
    task_params, params = start(task)

    @jax.jit
    def step(params, key):
        grads = jax.grad(task.loss, argnums=1)(task_params, params, key)
        # Normalized, so that one rate suits every example and every rescaling of it.
        size = lambda p: 0.02 * jnp.maximum(jnp.sqrt(jnp.mean(p**2)), 1e-2)
        return jax.tree.map(lambda p, g: p - size(p) * jnp.sign(g), params, grads)

    before = task.evaluate(task_params, params, "train")["loss"]
    for key in jax.random.split(KEY, 120):
        params = step(params, key)
    assert task.evaluate(task_params, params, "train")["loss"] < 0.9 * before


def test_traits_are_plain_json(task):
    traits = task.traits()
    assert set(traits) == {"family", "datasets", "architecture"}
    assert all(len(sizes) >= 1 for sizes in traits["architecture"].values())
