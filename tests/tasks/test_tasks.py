"""Known answers for the task families."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import mup
from tasks import ImageConv, ImageMLP, Quadratic, Reparametrized
from tasks.augment import Scaled
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
        train_subset=drawn.train_subset,
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
    """An optimizer that asks for +1 everywhere shows by what each tensor's updates are multiplied."""
    ones = optax.GradientTransformation(lambda params: (), lambda g, s, p: (jax.tree.map(jnp.ones_like, g), s))
    network, shrunk = ImageMLP(width=16, depth=2, mup=True, batch_size=4), {"w1": 1 / 16}
    for task, expected in ((network, shrunk), (Reparametrized(network, 1.0), shrunk), (ImageMLP(batch_size=4), {})):
        problem = task.sample(jax.random.key(0))
        before = task.start(ones, problem, task.init(problem, jax.random.key(1)))
        after, _ = task.step(ones, problem, before, KEY)
        moved = jax.tree.map(lambda a, b: a - b, after.params, before.params)
        for name, x in moved.items():
            # What is added to a weight of order one is rounded.
            np.testing.assert_allclose(x, jnp.full(x.shape, expected.get(name, 1.0)), atol=1e-6)


def test_the_activity_of_units_is_the_mean_of_their_size_behind_the_activation():
    task = ImageMLP(width=3, depth=2, batch_size=8, activations=("tanh",), max_input_factor=3.0)
    problem = task.sample(KEY)
    params = task.init(problem, KEY)
    activity = task.unit_activity(problem, params, KEY)
    hidden = np.asarray(task.table.batch(problem.dataset, "train", KEY, 8, problem.train_subset)[0])
    hidden = hidden * np.asarray(problem.input_scale)
    for layer in range(3):
        hidden = hidden @ params[f"w{layer}"] + params[f"b{layer}"]
        hidden = np.tanh(hidden) if layer < 2 else hidden
        for name in (f"w{layer}", f"b{layer}"):
            assert activity[name].shape == params[name].shape[-1:]
            np.testing.assert_allclose(activity[name], np.abs(hidden).mean(axis=0), rtol=1e-5)
    natural = jax.tree.map(lambda p: p / 7, params)
    scaled = Reparametrized(task).unit_activity(Scaled(problem, jax.tree.map(lambda _: 7.0, params)), natural, KEY)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), scaled, activity)


def test_units_that_do_not_exist_are_not_active():
    task = ImageMLP(width=4, batch_size=8, min_width=2, activations=("tanh",))
    problem = task.sample(KEY)._replace(unit_mask=jnp.array([1.0, 1.0, 0.0, 0.0]))
    activity = task.unit_activity(problem, task.init(problem, KEY), KEY)["w0"]
    assert (activity[:2] > 0).all() and (activity[2:] == 0).all()


def test_the_activity_of_channels_is_the_mean_over_pixels_too():
    task = ImageConv(side=4, channels=(2, 3), batch_size=5)
    params = task.init((), KEY)
    activity = task.unit_activity((), params, KEY)
    hidden = np.asarray(task.table.batch(0, "train", KEY, 5)[0]).reshape(5, 4, 4, 1)
    for layer in ("conv0", "conv1"):
        # Stride 2 with the padding of SAME: a row and a column of zeros behind.
        padded, side = np.pad(hidden, ((0, 0), (0, 1), (0, 1), (0, 0))), hidden.shape[1] // 2
        windows = [[padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] for j in range(side)] for i in range(side)]
        hidden = np.einsum("ijnhwc,hwcd->nijd", windows, params[layer]["w"]) + params[layer]["b"]
        hidden = np.maximum(hidden, 0)
        np.testing.assert_allclose(activity[layer], np.abs(hidden).mean(axis=(0, 1, 2)), rtol=1e-5)
    logits = hidden.mean(axis=(1, 2)) @ params["head"]["w"] + params["head"]["b"]
    np.testing.assert_allclose(activity["head"], np.abs(logits).mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(task.outputs((), params, KEY), logits, rtol=1e-4, atol=1e-6)
    assert {name: a.shape for name, a in activity.items()} == {"conv0": (2,), "conv1": (3,), "head": (10,)}
