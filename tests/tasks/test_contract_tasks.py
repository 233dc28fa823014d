"""What every task must satisfy. A task joins by its line in TASKS and an example here."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tasks
from metaopt import families
from tasks import PPO, GridWorld, ImageConv, ImageMLP, Lasso, Quadratic, Reparametrized
from tasks.suites import METHODS
from tasks.supervised import OPTIMIZER_KEY

EXAMPLES = {
    "lasso": Lasso(noise=0.1),
    "quadratic": Quadratic(dim=4, noise=0.1),
    "image_mlp": ImageMLP(
        width=12, depth=2, batch_size=16, min_width=4, min_depth=1, activations=("relu", "tanh"), max_init_factor=2.0
    ),
    "image_conv": ImageConv(channels=(3, 4), batch_size=16),
    "reparametrized": Reparametrized(ImageMLP(width=5, batch_size=16), max_factor=10.0),
}
# Tasks without a differentiable loss; what they promise beside names and traits is in tests of their own.
OTHERS = {"gridworld": GridWorld(), "ppo": PPO()}
KEY = jax.random.key(0)


@pytest.fixture(params=sorted(EXAMPLES))
def task(request):
    return EXAMPLES[request.param]


def start(task, key=KEY):
    task_params = task.sample(key)
    return task_params, task.init(task_params, key)


def test_every_registered_task_has_an_example():
    assert set(tasks.TASKS) <= set(EXAMPLES | OTHERS)


@pytest.mark.parametrize("task", (EXAMPLES | OTHERS).values(), ids=lambda task: task.name)
def test_a_task_has_the_methods_and_is_solved_by_kinds_that_there_are(task):
    assert all(hasattr(task, method) for method in METHODS) and isinstance(task.name, str)
    assert task.solved_by and set(task.solved_by) <= set(families.KINDS)


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


def test_a_thorough_measurement_is_fixed_and_differs_between_splits_of_data(task):
    task_params, params = start(task)
    evaluate = jax.jit(task.evaluate, static_argnums=2)
    losses = {split: float(evaluate(task_params, params, split)["loss"]) for split in ("train", "valid", "test")}
    assert all(np.isfinite(loss) for loss in losses.values())
    assert len(set(losses.values())) == (3 if task.traits()["datasets"] else 1)


def test_a_quick_measurement_is_the_loss_of_the_batch_of_its_key(task):
    task_params, params = start(task)
    evaluate, loss = (jax.jit(f, static_argnums=n) for f, n in ((task.evaluate, 2), (task.loss, 3)))
    for split in ("train", "valid"):
        quick = evaluate(task_params, params, split, KEY)
        assert set(quick) == {"loss"}
        np.testing.assert_allclose(quick["loss"], loss(task_params, params, KEY, split), rtol=1e-6)


@pytest.mark.parametrize("name", [*sorted(EXAMPLES), "in mup"])
def test_a_step_is_the_plain_optax_loop_bit_for_bit(name):
    """Several steps of AdamW against value_and_grad, update, multipliers and apply_updates."""
    task = EXAMPLES.get(name, ImageMLP(width=6, depth=2, batch_size=16, mup=True))
    task_params, params = start(task)
    tx = optax.adamw(0.03, weight_decay=0.1)

    @jax.jit
    def by_hand(task_params, params, opt_state, key):
        loss, grads = jax.value_and_grad(lambda params: task.loss(task_params, params, key))(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        if name == "in mup":
            updates["w1"] = updates["w1"] * (1 / 6)
        return optax.apply_updates(params, updates), opt_state, loss

    step, state, opt_state = jax.jit(task.step, static_argnums=0), task.start(tx, task_params, params), tx.init(params)
    jax.tree.map(np.testing.assert_array_equal, task.solution(state), params)
    for key in jax.random.split(jax.random.key(1), 4):
        params, opt_state, expected = by_hand(task_params, params, opt_state, key)
        state, loss = step(tx, task_params, state, key)
        jax.tree.map(np.testing.assert_array_equal, (task.solution(state), loss), (params, expected))


def test_an_optimizer_is_given_all_that_there_is(task):
    """The loss of the batch, the loss as a function on the same batch, a key of its own, the units' activity."""

    def update(grads, state, params, *, value, value_fn, key, activations):
        again, same = jax.value_and_grad(value_fn)(params)
        return grads, (value, again, grads, same, key, activations)

    tx = optax.GradientTransformationExtraArgs(lambda params: (), update)
    task_params, params = start(task)
    key = jax.random.key(5)

    @jax.jit
    def seen(task_params, params):
        state, loss = task.step(tx, task_params, task.start(tx, task_params, params), key)
        return state.opt_state, loss, task.unit_activity(task_params, params, key)

    (value, again, grads, same, own, activations), loss, activity = seen(task_params, params)
    assert value == loss == again
    jax.tree.map(np.testing.assert_array_equal, grads, same)
    assert own == jax.random.fold_in(key, OPTIMIZER_KEY) and own != key
    assert jax.tree.structure(activations) == jax.tree.structure(activity)
    jax.tree.map(np.testing.assert_array_equal, activations, activity)
    assert (activity is None) == (task.traits()["family"] in ("lasso", "quadratic"))


def test_the_activity_of_units_fits_the_optimizer_that_asks_for_it(task):
    """OPEN refuses activities that are no tree like the parameters, or of another number of units."""
    learned = families.build("open", hidden=2, width=2, noisy="")
    task_params, params = start(task)

    def step(theta):
        tx = learned.bind(theta, num_steps=10)
        return task.step(tx, task_params, task.start(tx, task_params, params), KEY)

    state, loss = jax.eval_shape(step, jax.eval_shape(learned.init, KEY))
    assert loss.shape == () and jax.tree.structure(state.params) == jax.tree.structure(params)


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


@pytest.mark.parametrize("task", (EXAMPLES | OTHERS).values(), ids=lambda task: task.name)
def test_traits_are_plain_json(task):
    traits = task.traits()
    assert set(traits) == {"family", "datasets", "architecture"}
    assert all(len(sizes) >= 1 for sizes in traits["architecture"].values())
    assert json.loads(json.dumps(traits)) == traits
