"""Every toy is meta-trained and evaluated, and its step is the same however it is run."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from meta_train import Episodes, Strategy, estimators, program
from meta_train.estimators.samples import Sampling
from meta_train.inner import episodes
from meta_train.parallel import devices
from metaopt.checks import check_task
from metaopt.evaluation import run
from tests.toys import bandit, forecaster, gain, genetic, update_rule

TOYS = {"bandit": bandit, "forecaster": forecaster, "gain": gain, "genetic": genetic, "update_rule": update_rule}
EVOLUTION = {
    "bandit": "es_single",
    "forecaster": "es_single",
    "gain": "pes",
    "genetic": "pes",
    "update_rule": "es_single",
}
# Fall of the meta-loss from the first ten outer steps to the last ten: half of the smallest fall that seeds 0 to 2
# gave with either estimator. Where a policy is best and where an error is zero, it cannot fall by much more.
FALLS = {"bandit": 0.24, "forecaster": 0.24, "gain": 1.8, "genetic": 0.95, "update_rule": 0.25}


@pytest.fixture(params=sorted(TOYS))
def name(request):
    return request.param


def assert_close(found, expected):
    """Equal up to float32 in another order of operations."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), found, expected)


def with_estimator(recipe, name):
    """The recipe with another estimator; a gradient needs fewer samples than a difference of losses, and no noise."""
    settings = {"num_samples": 8, "sigma": 0.0} if name == "tbptt" else {"sigma": recipe.estimator.sigma or 0.1}
    return dataclasses.replace(recipe, estimator=dataclasses.replace(recipe.estimator, name=name, **settings))


def meta_train(recipe, num_devices=2, num_dispatches=None):
    """Theta at the end, and the metrics of every outer step."""
    compiled = program.build(recipe, devices.mesh(num_devices))
    state, metrics = compiled.init(), []
    for _ in range(num_dispatches or recipe.outer.outer_steps // recipe.run.steps_per_dispatch):
        state, measured = compiled.dispatch(state)
        metrics.append(jax.device_get(measured))
    return jax.device_get(state.theta), jax.tree.map(lambda *x: np.concatenate(x), *metrics)


@functools.cache
def trained(name, estimator):
    return meta_train(with_estimator(TOYS[name].recipe, estimator))


@pytest.mark.parametrize("differentiated", [False, True], ids=["evolution", "tbptt"])
def test_meta_training_lowers_the_meta_loss(name, differentiated):
    _, metrics = trained(name, "tbptt" if differentiated else EVOLUTION[name])
    losses = metrics["meta_loss"]
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - FALLS[name]


def test_an_evosax_strategy_lowers_the_meta_loss():
    recipe = dataclasses.replace(
        bandit.recipe,
        strategy=Strategy("snes", population=16),
        estimator=dataclasses.replace(bandit.recipe.estimator, num_samples=4, sigma=1.0),
    )
    _, metrics = meta_train(recipe, num_dispatches=2)
    losses = metrics["meta_loss"]
    # Means over the population; within ten outer steps SNES is where the evolution strategy ends as well.
    assert np.mean(losses[-5:]) < np.mean(losses[:2]) - FALLS["bandit"]


def test_a_step_is_the_same_however_it_is_run(name):
    """Eager and jitted, looped and vmapped, on one device and on eight."""
    recipe = TOYS[name].recipe
    learned, (task,) = recipe.build_family(), recipe.build_tasks()
    problem = episodes.build(learned, task, recipe.episodes, recipe.estimator.window)
    theta, num = learned.init(jax.random.key(0)), 8
    begun = jax.jit(jax.vmap(lambda key: problem.reset(theta, key, 0)))(jax.random.split(jax.random.key(1), num))

    def step(episode):
        episode, loss = problem.step(theta, episode)
        return episode.inner, loss

    @jax.jit
    def take(i):
        return jax.tree.map(lambda x: x[i], begun)

    jitted, vmapped = jax.jit(step), jax.jit(jax.vmap(step))
    looped = [jax.device_get(jitted(take(i))) for i in range(num)]
    on_one_device = vmapped(begun)
    on_eight_devices = vmapped(jax.device_put(begun, NamedSharding(devices.mesh(8), P(devices.SAMPLE_AXIS))))
    assert len(on_eight_devices[1].sharding.device_set) == 8
    assert_close(step(take(0)), looped[0])
    assert_close(jax.tree.map(lambda *x: np.stack(x), *looped), on_one_device)
    assert_close(on_eight_devices, on_one_device)


def test_what_was_trained_is_better_where_it_is_evaluated(name):
    recipe = TOYS[name].recipe
    learned, (task,) = recipe.build_family(), recipe.build_tasks()
    num_steps, num_seeds, fresh = recipe.episodes.longest, 4, learned.init(jax.random.key(0))
    theta, _ = trained(name, "tbptt")

    def make(is_trained):
        chosen = jax.tree.map(lambda old, new: jnp.where(is_trained, new, old), fresh, theta)
        return learned.bind(chosen, num_steps=num_steps)

    trainer = run.trainer(task, make, num_steps, every=1)
    seeds = jax.random.split(jax.random.key(1), num_seeds)
    curves = [trainer(jnp.arange(2), problem, seeds).valid for problem in jax.random.split(jax.random.key(2), 8)]
    before, after = np.stack(curves, axis=1)
    assert before.shape == after.shape == (8, num_seeds, num_steps + 1)
    np.testing.assert_array_equal(before[..., 0], after[..., 0])  # pairs start from the same
    # Every toy begins far too timid: what was trained is ahead at every step, but where a problem begins at its end.
    assert np.mean(after[..., 1:] < before[..., 1:]) > 0.95


def first_gradients(names, problem, theta, config):
    """The first estimate of every estimator, from the same key."""

    @jax.jit
    def estimate(key):
        built = [estimators.build(name, problem, config, devices.mesh(1)) for name in names]
        return [estimator.estimate(theta, estimator.init(theta, key), 0)[0] for estimator in built]

    return estimate(jax.random.key(0))


def test_half_pes_is_half_of_pes():
    recipe = gain.recipe
    learned, (task,) = recipe.build_family(), recipe.build_tasks()
    problem = episodes.build(learned, task, recipe.episodes, recipe.estimator.window)
    theta = learned.init(jax.random.key(0))
    half, whole = first_gradients([gain.half_pes, "pes"], problem, theta, recipe.estimator)
    assert whole["log_rate"] != 0.0
    np.testing.assert_array_equal(2.0 * half["log_rate"], whole["log_rate"])  # a factor of two is exact


class Stateless(forecaster.Trajectories):
    """Nothing is kept from one step to the next: the state is empty, and the loss of the step is all there is."""

    def init(self, task_params, key):
        del task_params, key
        return ()

    def step(self, algorithm, task_params, state, key):
        _, loss = super().step(algorithm, task_params, None, key)
        return state, loss

    def evaluate(self, task_params, x, split, key=None):
        del x  # of nothing worked on, the error is that of standing still
        return super().evaluate(task_params, task_params.history[-1], split, key)


@pytest.mark.parametrize(
    "names, sigma",
    [
        # An episode of one window has one draw of noise, and no state that would differ between members.
        (("es", "es_single", "pes", "truncated_es"), 0.1),
        # No derivative reaches beyond a window.
        (("backprop", "rtrl", "tbptt"), 0.0),
    ],
    ids=["evolution", "derivatives"],
)
def test_estimators_agree_where_there_is_no_state(names, sigma):
    recorded = Episodes(shortest=1, longest=1, split="train", objective="raw")
    problem = episodes.build(forecaster.family, Stateless(batch_size=4), recorded)
    theta = {"slope": (jnp.array([0.1, 0.2, 0.3]), [jnp.array(-0.5)])}
    expected, *others = first_gradients(names, problem, theta, Sampling(num_samples=4, window=1, sigma=sigma))
    assert np.all(expected["slope"][0])
    for other in others:
        assert_close(other, expected)


def test_a_drift_keeps_its_contract():
    learned = bandit.LearnedDrift.build(bandit.LearnedDrift.Config())
    drift = learned.bind(learned.init(jax.random.key(0)))
    for advantage in (-2.0, 0.0, 3.0):
        value, slope = jax.value_and_grad(drift)(0.0, advantage, progress=0.5)
        assert value == 0.0 and slope == 0.0
        # Never negative, down to the ratios that float32 just tells from 1.
        sizes = jnp.geomspace(1e-8, 3.0, 200)
        assert np.all(drift(jnp.append(-sizes, sizes), advantage) >= 0.0)


def test_what_is_not_finite_stays_out_of_a_search():
    search = genetic.bind({"log_sigma": jnp.zeros(()), "log_temperature": jnp.zeros(())})
    params = search.default_params
    state = search.init(jax.random.key(0), jnp.zeros(2), params)
    population, state = search.ask(jax.random.key(1), state, params)
    population = population.at[0].set(jnp.inf)
    fitness = jnp.array([jnp.nan, jnp.inf, -jnp.inf, 2.0, 1.0, jnp.nan, jnp.nan, jnp.nan])
    told, _ = search.tell(jax.random.key(2), population, fitness, state, params)
    expected = (population[4] + population[3] / np.e) / (1 + 1 / np.e)  # ranks 0 and 1 at temperature 1
    np.testing.assert_allclose(told.mean, expected, rtol=1e-6)
    told, _ = search.tell(jax.random.key(2), population, fitness.at[3:5].set(jnp.nan), state, params)
    np.testing.assert_array_equal(told.mean, state.mean)


def test_an_algorithm_of_evosax_solves_the_task_of_a_search():
    from evosax.algorithms import SNES

    def bind(theta, num_steps=None):
        del num_steps
        search = SNES(population_size=8, solution=jnp.zeros(3))
        params = search.default_params.replace(std_init=jnp.exp(theta["log_std"]))
        return SimpleNamespace(init=search.init, ask=search.ask, tell=search.tell, default_params=params)

    task = genetic.Sphere()
    check_task(task, bind, {"log_std": jnp.zeros(())})
    trainer = run.trainer(task, lambda log_std: bind({"log_std": log_std}), num_steps=40, every=40)
    curves = trainer(jnp.zeros(1), jax.random.key(0), jax.random.split(jax.random.key(1), 4))
    assert np.all(curves.test < 0.01 * curves.valid[..., 0])  # a tenth of the distance, in 320 evaluations
