"""The wrapper that turns every family's update rule into an Optax transformation."""

import jax.numpy as jnp
import optax
import pytest

from metaopt.optimizers.common import parameters, rule


def loss_reader(needs_value):
    return rule.transformation(
        lambda params: (), lambda g, s, p, value: ({"x": g["x"] * value}, s), name="reader", needs_value=needs_value
    )


def test_a_missing_value_is_named_with_the_call():
    tx, tree = loss_reader(True), {"x": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"reader needs the current loss: call update\(.*value=loss\)"):
        tx.update(tree, tx.init(tree), tree)


def test_value_arrives_and_unknown_extra_arguments_are_ignored():
    tx, tree = loss_reader(True), {"x": jnp.full(2, 3.0)}
    updates, _ = tx.update(tree, tx.init(tree), tree, value=2, somebody_elses=1)
    assert updates["x"].tolist() == [6.0, 6.0]


def test_keywords_that_a_rule_reads_arrive_and_are_none_where_not_given():
    def update(grads, state, params, value, factor):
        return (grads if factor is None else {"x": factor * grads["x"]}), state

    tx, tree = rule.transformation(lambda params: (), update, name="reader", reads=("factor",)), {"x": jnp.ones(2)}
    assert tx.update(tree, (), tree)[0]["x"].tolist() == [1.0, 1.0]
    assert tx.update(tree, (), tree, factor=3.0)[0]["x"].tolist() == [3.0, 3.0]


def test_containers_that_differ_are_named():
    with pytest.raises(ValueError, match="different containers"):
        parameters.match_gradients([jnp.ones(2)], (jnp.ones(2),))


@pytest.mark.parametrize("value", [jnp.ones(4), jnp.ones((1, 1)), [1.0, 2.0]])
def test_a_loss_that_is_no_number_is_named_with_its_shape(value):
    tx, tree = loss_reader(True), {"x": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"reader needs the loss as one number, and value has shape .*: take its mean"):
        tx.update(tree, tx.init(tree), tree, value=value)


def test_a_chain_drops_value_before_what_takes_no_extra_arguments_and_the_message_says_so():
    tx, tree = loss_reader(True), {"x": jnp.ones(2)}
    steps = optax.MultiSteps(tx, every_k_schedule=1)
    chain = optax.chain(steps.gradient_transformation())
    with pytest.raises(ValueError, match=r"a wrapper drops it: .*MultiSteps\(...\).gradient_transformation\(\)"):
        chain.update(tree, chain.init(tree), tree, value=2.0)
    chain = optax.chain(optax.GradientTransformationExtraArgs(steps.init, steps.update))
    assert chain.update(tree, chain.init(tree), tree, value=2.0)[0]["x"].tolist() == [2.0, 2.0]


def test_none_in_the_place_of_a_layer_stands_for_all_its_gradients():
    tx = rule.transformation(lambda params: (), lambda g, s, p, value: (g, s), name="identity")
    params = {"layer": {"w": jnp.ones(2), "b": jnp.ones(1)}, "x": jnp.ones(2)}
    updates, _ = tx.update({"layer": None, "x": jnp.ones(2)}, (), params)
    assert [float(jnp.sum(u)) for u in (updates["layer"]["w"], updates["layer"]["b"], updates["x"])] == [0.0, 0.0, 2.0]
