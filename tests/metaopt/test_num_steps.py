"""The planned length of training: what is one, what happens beyond it, how to go on without knowing it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metaopt
from metaopt import families
from metaopt.errors import UserError
from tests.bench.length import Stage, losses
from tests.metaopt.cases import CASES, IDS, built, problem

NO_ARRAY = [0, -5, "10", b"3", True, np.nan, np.inf, 2.5, 1e12, 10**30, [3], {}, 1 + 2j]
NO_LENGTH = [*NO_ARRAY, np.bool_(True), np.float32(0.5), jnp.int32(0), jnp.array([3])]


@pytest.mark.parametrize("num_steps", NO_LENGTH, ids=repr)
def test_what_is_no_length_is_refused_by_every_family_and_by_load(num_steps):
    for index in range(len(CASES)):
        optimizer, theta = built(index)
        with pytest.raises(UserError, match="num_steps, the planned length of training, is a whole number of steps"):
            optimizer.bind(theta, num_steps=num_steps)
    with pytest.raises(UserError, match="whole number of steps from 1 to 2,147,483,647, got"):
        metaopt.load("small-fc-images", num_steps=num_steps)


def test_a_user_s_own_family_is_held_to_it_too():
    def own():
        return metaopt.core.Learned(lambda key: {"x": jnp.zeros(())}, lambda theta, num_steps=None: num_steps)

    learned = families.build(own)
    assert learned.bind({}, num_steps=10.0) == 10.0 and learned.bind({}) is None
    with pytest.raises(UserError, match="got 0"):
        learned.bind({}, num_steps=0)


@pytest.mark.parametrize("index", range(len(CASES)), ids=IDS)
def test_updates_are_finite_at_the_ends_of_the_range_and_beyond(index):
    """The shortest and the longest training, its first step and one far beyond its end."""
    optimizer, theta = built(index)
    params, grads = problem()

    @jax.jit
    def update(num_steps, taken):
        tx = optimizer.bind(theta, num_steps=num_steps)
        state = jax.tree.map(lambda x: x + taken if x.dtype == jnp.int32 else x, tx.init(params))
        return tx.update(grads, state, params, value=1.5)

    for num_steps, taken in ((1, 0), (1, 1000), (families.LONGEST, 0), (10, 2_000_000)):
        results = update(jnp.int32(num_steps), jnp.int32(taken))
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(results))


def test_a_training_of_unknown_length_goes_on_or_restarts():
    """On the digits: bound again, restarted and gone on beyond the plan, all below half of where the plan ends."""
    plans = {
        "planned": [Stage(20, 20)],
        "bound again": [Stage(20, 20), Stage(60, 80)],
        "restarted": [Stage(20, 20), Stage(60, 60, fresh=True)],
        "beyond": [Stage(80, 20)],
    }
    trained = {name: float(jax.jit(losses(plan))(0)[0]) for name, plan in plans.items()}
    for name in ("bound again", "restarted", "beyond"):
        assert trained[name] < 0.5 * trained["planned"], trained
