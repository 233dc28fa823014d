"""The wrapper that turns every family's update rule into an Optax transformation."""

import jax.numpy as jnp
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
