"""VeLO, Celo and Celo2 where the golden files do not look."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import families
from metaopt.optimizers.celo2 import orthogonalize
from metaopt.optimizers.common import features

DRAW = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape)


def bind(family, num_steps=10, **settings):
    optimizer = families.build(family, **settings)
    return optimizer.bind(optimizer.init(jax.random.key(0)), num_steps=num_steps)


def updates_of(tx, params, grads, losses=(1.0, 0.9, 0.8)):
    """The updates of each step, for the same gradients."""
    state, update, found = tx.init(params), jax.jit(tx.update), []
    for loss in losses:
        updates, state = update(grads, state, params, value=jnp.float32(loss))
        found.append(updates)
    return found, state


def test_muvelo_is_velo_without_the_size_of_the_tensor():
    params, grads = {"w": DRAW(0, 4, 3)}, {"w": DRAW(1, 4, 3)}
    (relative, *_), _ = updates_of(bind("velo"), params, grads)
    (absolute, *_), _ = updates_of(bind("velo", relative=False), params, grads)
    rms = np.sqrt(np.mean(np.square(params["w"])))
    np.testing.assert_allclose(relative["w"], rms * absolute["w"], rtol=1e-5)


@pytest.mark.parametrize("family", ["velo", "celo"])
@pytest.mark.parametrize("loss", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_loss_that_is_not_finite_leaves_no_trace(family, loss):
    params, grads = {"w": DRAW(0, 4, 3)}, {"w": DRAW(1, 4, 3)}
    found, state = updates_of(bind(family), params, grads, (1.0, loss, 0.8, 0.7))
    _, clean = updates_of(bind(family), params, grads, (1.0, 0.8, 0.7))
    assert all(np.isfinite(updates["w"]).all() for updates in found)
    jax.tree.map(np.testing.assert_array_equal, state.losses, clean.losses)


def test_velo_survives_tensors_without_elements_and_trees_without_tensors():
    params, grads = {"w": DRAW(0, 4, 3)}, {"w": DRAW(1, 4, 3)}
    empty = {"none": jnp.zeros((0, 3))}
    (updates, *_), _ = updates_of(bind("velo"), params | empty, grads | empty)
    assert np.isfinite(updates["w"]).all()
    assert updates_of(bind("velo"), {}, {})[0][0] == {}


def test_gradients_that_are_not_numbers_count_as_zero():
    params, grads = {"w": DRAW(0, 4, 3)}, {"w": DRAW(1, 4, 3)}
    zero, nan = ({"w": grads["w"].at[0, 0].set(value)} for value in (0.0, jnp.nan))
    (expected, *_), _ = updates_of(bind("celo"), params, zero)
    (found, *_), _ = updates_of(bind("celo"), params, nan)
    np.testing.assert_array_equal(found["w"], expected["w"])


def test_loss_features_tell_a_falling_loss_from_a_rising_one():
    def last(losses):
        state = features.init_losses()
        for loss in losses:
            seen, state = features.loss_features(state, jnp.float32(loss), 100)
        return np.asarray(seen)

    falling, rising = last(np.linspace(1.0, 0.5, 30)), last(np.linspace(0.5, 1.0, 30))
    assert falling.shape == (9,) and np.all(falling < 0) and np.all(rising > 0)
    assert np.all(last([1.0, 0.5]) == 0)  # two losses are too few


def test_celo_adam_is_adam_times_one_number():
    params, grads = {"w": DRAW(0, 4, 3), "b": DRAW(2, 3)}, {"w": DRAW(1, 4, 3), "b": DRAW(3, 3)}
    found, state = updates_of(bind("celo", rule="adam"), params, grads)
    adam = optax.scale_by_adam(0.9, 0.999, eps=1e-8, eps_root=1e-10)
    adam_state = adam.init(params)
    for updates in found:
        direction, adam_state = adam.update(grads, adam_state)
        ratio = np.concatenate(
            [np.ravel(-u / d) for u, d in zip(*map(jax.tree.leaves, (updates, direction)), strict=True)]
        )
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
        assert 1e-5 < ratio[0] < 1e-2  # 0.001 times a tenth of an exponential
    assert state.recurrent.hidden.shape == (1, 64)  # one row, whatever the tensors


def test_celo2_updates_vectors_and_embeddings_by_adamw():
    params = {"bias": DRAW(0, 3), "embedding": DRAW(1, 5, 3)}
    grads = {"bias": DRAW(2, 3), "embedding": DRAW(3, 5, 3)}
    found, _ = updates_of(bind("celo2", learning_rate=0.01, weight_decay=0.1), params, grads)
    adamw = optax.adamw(20 * 0.01, b1=0.9, b2=0.95, weight_decay=0.1)
    state = adamw.init(params)
    for updates in found:
        expected, state = adamw.update(grads, state, params)
        jax.tree.map(lambda u, e: np.testing.assert_allclose(u, e, rtol=1e-5), updates, expected)


def test_celo2_moves_every_matrix_of_a_stack_by_one_root_mean_square():
    params, grads = {"w": DRAW(0, 2, 6, 4)}, {"w": DRAW(1, 2, 6, 4)}
    (updates, *_), _ = updates_of(bind("celo2", learning_rate=0.01), params, grads)
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(updates["w"]), axis=(1, 2))), 0.01, rtol=1e-4)


def test_orthogonalizing_brings_singular_values_near_one():
    u = DRAW(0, 3, 6, 4)
    values = np.linalg.svd(orthogonalize(u), compute_uv=False)
    assert values.shape == (3, 4) and 0.5 < values.min() and values.max() < 1.3  # five steps stay in this band
