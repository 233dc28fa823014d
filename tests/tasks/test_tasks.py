"""Known answers for the task families."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import mup
from metaopt.core import scaled_updates
from tasks import ImageMLP, Quadratic, Reparametrized
from tasks.image_mlp import Sampled

KEY = jax.random.key(3)


def test_the_optimum_of_a_quadratic_has_loss_zero_and_no_gradient():
    task = Quadratic(dim=5, condition=100.0)
    quadric = task.sample(KEY)
    loss, grad = jax.value_and_grad(task.loss, argnums=1)(quadric, {"x": quadric.optimum}, KEY)
    assert loss == 0 and np.abs(grad["x"]).max() == 0
    values = np.linalg.eigvalsh(quadric.hessian)
    assert values.min() >= 0.01 * (1 - 1e-4) and values.max() <= 1 + 1e-5


def test_gradient_noise_has_mean_zero_and_the_given_deviation():
    task = Quadratic(dim=2, noise=0.3)
    quadric, params = task.sample(KEY), {"x": jnp.array([1.0, 2.0])}
    grads = jax.vmap(lambda k: jax.grad(task.loss, argnums=1)(quadric, params, k)["x"])(jax.random.split(KEY, 10_000))
    exact = jax.grad(task.loss, argnums=1)(quadric, params, KEY, "valid")["x"]
    scale = 0.3 / 2  # the loss is divided by the dimension
    np.testing.assert_allclose(grads.mean(axis=0), exact, atol=4 * scale / 100)  # four standard errors
    np.testing.assert_allclose(grads.std(axis=0), scale, rtol=0.03)


def test_reparametrizing_changes_no_loss_and_scales_gradients():
    plain = ImageMLP(width=6, batch_size=16)
    task = Reparametrized(plain, 10.0)
    scaled = task.sample(KEY)
    params = task.init(scaled, KEY)
    natural = jax.tree.map(jnp.multiply, params, scaled.scales)
    np.testing.assert_allclose(task.loss(scaled, params, KEY), plain.loss(scaled.task_params, natural, KEY), rtol=1e-5)
    ours = jax.grad(task.loss, argnums=1)(scaled, params, KEY)
    theirs = jax.grad(plain.loss, argnums=1)(scaled.task_params, natural, KEY)
    jax.tree.map(
        lambda a, b, s: np.testing.assert_allclose(a, b * s, rtol=1e-4, atol=1e-6), ours, theirs, scaled.scales
    )


def test_absent_units_and_layers_have_no_gradient():
    task = ImageMLP(width=8, depth=3, min_width=2, min_depth=1, batch_size=16)
    drawn = task.sample(KEY)
    small = Sampled(
        drawn.dataset,
        drawn.activation,
        drawn.init_scale,
        drawn.input_scale,
        unit_mask=jnp.array([1.0] * 3 + [0.0] * 5),
        layer_mask=jnp.array([1.0, 1.0, 0.0]),
        train_part=drawn.train_part,
    )
    grads = jax.grad(task.loss, argnums=1)(small, task.init(small, KEY), KEY)
    assert np.abs(grads["w0"][:, 3:]).max() == 0 and np.abs(grads["w0"][:, :3]).max() > 0
    assert np.abs(grads["w1"][3:]).max() == 0 and np.abs(grads["w2"]).max() == 0
    assert np.abs(grads["w3"][3:]).max() == 0 and np.abs(grads["w3"][:3]).max() > 0


def test_sampled_sizes_cover_their_range():
    task = ImageMLP(width=16, depth=3, min_width=4, min_depth=1, activations=("relu", "tanh", "silu"))
    drawn = jax.vmap(task.sample)(jax.random.split(KEY, 500))
    widths, depths = drawn.unit_mask.sum(axis=1), drawn.layer_mask.sum(axis=1)
    assert widths.min() == 4 and widths.max() == 16 and set(np.asarray(depths)) == {1, 2, 3}
    np.testing.assert_allclose(drawn.activation.mean(axis=0), 1 / 3, atol=4 * (2 / 9 / 500) ** 0.5)


def test_one_row_of_a_fixed_network_by_hand():
    task = ImageMLP(width=2, depth=1)
    drawn = task.sample(KEY)
    params = {
        "w0": jnp.zeros((64, 2)).at[0, 0].set(1.0).at[1, 1].set(-1.0),
        "b0": jnp.array([0.5, 0.5]),
        "w1": jnp.zeros((2, 10)).at[0, 3].set(2.0),
        "b1": jnp.zeros(10),
    }
    inputs = jnp.zeros((1, 64)).at[0, 0].set(3.0).at[0, 1].set(4.0)
    logits = task.logits(drawn, params, inputs)
    np.testing.assert_allclose(logits[0], [0, 0, 0, 7.0, 0, 0, 0, 0, 0, 0])  # relu(3.5) * 2, relu(-3.5) * anything


@pytest.mark.parametrize("bad", [{"dim": 0}, {"condition": 0.5}, {"noise": -1.0}])
def test_impossible_quadratics_are_refused(bad):
    with pytest.raises(ValueError, match="need dim >= 1"):
        Quadratic(**bad)


def test_a_network_in_mup_is_what_is_inferred_from_its_shapes():
    task, narrow = (ImageMLP(width=width, depth=3, mup=True) for width in (32, 16))
    problem = task.sample(jax.random.key(0))
    shapes = [jax.eval_shape(t.init, t.sample(jax.random.key(0)), jax.random.key(1)) for t in (task, narrow)]
    tensors = mup.infer(*shapes)
    assert jax.tree.map(float, task.multipliers(problem)) == tensors.multiplier
    assert tensors.forward["w3"] == 1 / 32
    params = task.init(problem, jax.random.key(1))
    assert not np.any(params["w3"]) and 0.9 < np.std(params["w1"]) * 32**0.5 < 1.1
    plain, inputs = ImageMLP(width=32, depth=3), jax.random.normal(jax.random.key(2), (5, 64))
    params["w3"] = params["w1"][:, :10]
    expected = plain.logits(problem, params, inputs) / 32
    np.testing.assert_allclose(task.logits(problem, params, inputs), expected, rtol=1e-6)


def test_updates_are_multiplied_where_the_task_says_so():
    tasks = [ImageMLP(width=16, depth=2, mup=True), Reparametrized(ImageMLP(width=16, depth=2, mup=True), 1.0)]
    for task in tasks:
        problem = task.sample(jax.random.key(0))
        updates = jax.tree.map(jnp.ones_like, task.init(problem, jax.random.key(1)))
        scaled = scaled_updates(task, problem, updates)
        assert {name: float(u.ravel()[0]) for name, u in scaled.items()} == {
            "w0": 1.0, "b0": 1.0, "w1": 1 / 16, "b1": 1.0, "w2": 1.0, "b2": 1.0
        }  # fmt: skip
    assert scaled_updates(ImageMLP(), None, {"w0": 2.0}) == {"w0": 2.0}
