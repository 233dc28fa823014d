"""Every optimizer in the training loops of other libraries: ten steps equal those of the plain loop."""

import functools
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen, nnx
from flax.training.train_state import TrainState

from tests.metaopt.cases import CASES, IDS, NUM_STEPS, bound, close

ALL = pytest.mark.parametrize("index", range(len(CASES)), ids=IDS)
NEEDS_VALUE = ("velo", "celo")
X = jax.random.normal(jax.random.key(0), (5, 4))
KERNEL, BIAS = jax.random.normal(jax.random.key(1), (4, 2)), jnp.zeros(2)


def output(kernel, bias):
    return jnp.mean(jnp.tanh(X @ kernel + bias - 1.0) ** 2)


@functools.cache
def jitted(index: int):
    """The optimizer with a jitted update: what a library does around it is not jitted."""
    tx = bound(index, num_tensors=2)
    return optax.GradientTransformationExtraArgs(tx.init, jax.jit(tx.update))


@functools.cache
def plain(index: int) -> dict[str, jax.Array]:
    """The parameters after the plain loop."""
    params, tx = {"bias": BIAS, "kernel": KERNEL}, jitted(index)
    state, value_and_grad = tx.init(params), jax.jit(jax.value_and_grad(lambda p: output(**p)))
    for _ in range(NUM_STEPS):
        value, grads = value_and_grad(params)
        updates, state = tx.update(grads, state, params, value=value)
        params = optax.apply_updates(params, updates)
    return params


def close_to_plain(index: int, kernel, bias) -> None:
    """Other fusions give other roundings, and ten steps let them grow."""
    close({"kernel": kernel, "bias": bias}, plain(index), rtol=1e-3, atol=1e-5)


@ALL
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_nnx(index, jit):
    model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
    model.kernel[...], model.bias[...] = KERNEL, BIAS
    optimizer = nnx.Optimizer(model, bound(index, num_tensors=2) if jit else jitted(index), wrt=nnx.Param)

    def step(model, optimizer):
        value, grads = nnx.value_and_grad(lambda m: jnp.mean(jnp.tanh(m(X) - 1.0) ** 2))(model)
        optimizer.update(model, grads, value=value)

    step = nnx.jit(step) if jit else step
    for _ in range(NUM_STEPS):
        step(model, optimizer)
    close_to_plain(index, model.kernel[...], model.bias[...])


@ALL
def test_linen_train_state(index):
    model = linen.Dense(2)
    state = TrainState.create(apply_fn=model.apply, params={"kernel": KERNEL, "bias": BIAS}, tx=jitted(index))
    grad = jax.jit(jax.grad(lambda p: jnp.mean(jnp.tanh(model.apply({"params": p}, X) - 1.0) ** 2)))
    if CASES[index][0] in NEEDS_VALUE:  # apply_gradients cannot pass the loss on: the error says how to go without
        with pytest.raises(ValueError, match="needs the current loss: call update"):
            state.apply_gradients(grads=grad(state.params))
        return
    for _ in range(NUM_STEPS):
        state = state.apply_gradients(grads=grad(state.params))
    close_to_plain(index, state.params["kernel"], state.params["bias"])


class Layer(eqx.Module):
    bias: jax.Array
    kernel: jax.Array
    activation: Callable  # a function among the leaves, and a field that is none
    name: str = eqx.field(static=True)


@ALL
@pytest.mark.parametrize("whole", [False, True], ids=["filtered", "whole"])
def test_equinox(index, whole):
    model, tx = Layer(BIAS, KERNEL, jax.nn.tanh, "layer"), bound(index, num_tensors=2)
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state):
        loss = lambda m: jnp.mean(m.activation(X @ m.kernel + m.bias - 1.0) ** 2)
        value, grads = eqx.filter_value_and_grad(loss)(model)
        params = model if whole else eqx.filter(model, eqx.is_inexact_array)
        updates, state = tx.update(grads, state, params, value=value)
        return eqx.apply_updates(model, updates), state

    for _ in range(NUM_STEPS):
        model, state = step(model, state)
    close_to_plain(index, model.kernel, model.bias)


def test_a_whole_equinox_module_cannot_be_given_to_init():
    with pytest.raises(ValueError, match=r"params.activation is no array but .*equinox.filter\(model"):
        bound(0).init(Layer(BIAS, KERNEL, jax.nn.tanh, "layer"))
