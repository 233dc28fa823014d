"""Strategies of evosax as outer optimizers."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from meta_train import outer, settings, strategies, training
from meta_train.estimators.samples import Sampling
from meta_train.parallel import devices
from meta_train.recipe import Episodes, Estimation, OuterLoop, Recipe, Run, Strategy
from meta_train.strategies import STRATEGIES, fitness
from metaopt.core import Episode, InnerProblem
from metaopt.errors import UserError
from tests.meta_train.problems import THETA, linear_system, mean_loss

HORIZON, WINDOW, MEMBERS, LENGTH = 12, 3, 16, 60
LOCKSTEP = {"persistent_es", "noise_reuse_es"}
SAMPLING = Sampling(num_samples=1, window=WINDOW, sigma=0.1)


def build(name, problems, tx, mesh, theta=THETA, population=MEMBERS, normalize="zscore", **changes):
    strategy, sampling = Strategy(name, population, normalize), dataclasses.replace(SAMPLING, **changes)
    return strategies.build(theta, problems, strategy, sampling, tx, mesh)


def begin(name, problems, tx, num_devices=1, length=1, **changes):
    """The first state and the function that makes ``length`` outer steps."""
    mesh = devices.mesh(num_devices)
    program = build(name, problems, tx, mesh, **changes)
    init = jax.jit(lambda: program.init(THETA, jax.random.key(0)), out_shardings=outer.shardings(mesh))
    return init(), outer.build_dispatch(program, length, mesh)


@functools.cache
def trained(name, num_devices):
    state, dispatch = begin(name, [linear_system(HORIZON)], optax.adam(0.05), num_devices, LENGTH)
    state, first = dispatch(state)
    state, second = dispatch(state)
    return state.theta, jax.tree.map(lambda *x: np.concatenate(x), first, second), dispatch


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_it_finds_the_best_theta(name):
    """The meta-loss is quadratic: what is left of the gap to its minimum, which is known."""
    theta, metrics, _ = trained(name, 1)
    best = THETA - jnp.linalg.solve(jax.hessian(mean_loss)(THETA, HORIZON), jax.grad(mean_loss)(THETA, HORIZON))
    gap = lambda theta: mean_loss(theta, HORIZON) - mean_loss(best, HORIZON)
    # Estimates of single windows differ from step to step: Adam at a constant rate stays that noisy.
    assert gap(theta) < (0.05 if name in LOCKSTEP else 1e-4) * gap(THETA)
    assert metrics["skipped"].max() == 0
    np.testing.assert_allclose(metrics["theta_norm"][-1], jnp.linalg.norm(theta), rtol=1e-6)


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_eight_devices_give_what_one_gives(name):
    (_, one, _), (_, eight, _) = trained(name, 1), trained(name, 8)
    for metric in ("meta_loss", "theta_norm", "sigma"):  # of the first steps: rounding grows in what adapts
        np.testing.assert_allclose(one[metric][:10], eight[metric][:10], rtol=1e-5)


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_run_compiles_once(name):
    assert trained(name, 8)[2]._cache_size() == 1


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_inner_steps_are_counted(name):
    _, metrics, _ = trained(name, 1)
    np.testing.assert_array_equal(metrics["inner_steps"], MEMBERS * (WINDOW if name in LOCKSTEP else HORIZON))


def test_members_one_after_the_other_give_what_all_at_once_give():
    state, dispatch = begin("persistent_es", [linear_system(HORIZON)], optax.adam(0.05), length=5, at_once=3)
    _, metrics = dispatch(state)
    np.testing.assert_allclose(metrics["theta_norm"], trained("persistent_es", 1)[1]["theta_norm"][:5], rtol=1e-5)


def test_open_es_is_antithetic_evolution_strategies():
    """g = mean over pairs of e (L+ - L-) / (2 sigma^2), from the very population that it asked for."""
    from evosax.algorithms import Open_ES

    state, dispatch = begin("open_es", [linear_system(HORIZON)], optax.sgd(0.5), normalize="none")
    key, search = state.opt_state
    algorithm = Open_ES(MEMBERS, THETA)
    key = jax.random.fold_in(jax.random.fold_in(key, 0), strategies.ASK)
    population, _ = algorithm.ask(key, search, algorithm.default_params)
    plus, minus = population[: MEMBERS // 2], population[MEMBERS // 2 :]
    np.testing.assert_allclose(plus + minus, jnp.broadcast_to(2 * THETA, plus.shape), atol=1e-6)  # it is mirrored
    loss = jax.vmap(lambda theta: mean_loss(theta, HORIZON))
    factors = (loss(plus) - loss(minus)) / (2 * SAMPLING.sigma**2)
    grad = jnp.mean(factors[:, None] * (plus - THETA), axis=0)
    after, _ = dispatch(state)
    np.testing.assert_allclose((THETA - after.theta) / 0.5, grad, rtol=1e-4)  # differences of losses in float32


TAPE = optax.GradientTransformation(  # moves nothing and remembers the sum of all gradients
    init=jnp.zeros_like, update=lambda grad, total, params=None: (jnp.zeros_like(grad), total + grad)
)


def last_loss(theta):
    return HORIZON * mean_loss(theta, HORIZON) - (HORIZON - 1) * mean_loss(theta, HORIZON - 1)


@pytest.mark.parametrize(
    "name, normalize, combine",
    [("noise_reuse_es", "none", "mean"), ("persistent_es", "zscore", "mean"), ("persistent_es", "none", "last")],
)
def test_windows_of_an_episode_add_up_to_the_true_gradient(name, normalize, combine):
    """As for our own PES and ES-Single; with a single column zscore takes away no more than a mean."""
    num_windows = HORIZON // WINDOW
    changes = {"population": 40_000, "normalize": normalize, "combine": combine}
    state, dispatch = begin(name, [linear_system(HORIZON)], TAPE, length=num_windows, **changes)
    state, _ = dispatch(state)
    search = state.opt_state.state
    truth = jax.grad(last_loss)(THETA) if combine == "last" else jax.grad(mean_loss)(THETA, HORIZON)
    # Four standard errors of 20,000 pairs, as in test_es; the differences that make a last
    # loss weigh T / W times as much as a window of the mean.
    tolerance = 4 * float(jnp.linalg.norm(truth)) * (3 / 20_000) ** 0.5 * (num_windows if combine == "last" else 1.5)
    np.testing.assert_allclose(search.opt_state / num_windows, truth, atol=tolerance)
    np.testing.assert_array_equal(state.theta, THETA)
    assert search.inner_step_counter == 0  # the next window begins an episode


def stateless(loss):
    """Losses of theta, and of the key of a step."""
    return InnerProblem(
        reset=lambda theta, key, outer_step: Episode(key, jnp.int32(0), jnp.int32(HORIZON), (), ()),
        step=lambda theta, e: (e._replace(step=e.step + 1), loss(theta, jax.random.fold_in(e.key, e.step))),
        longest=HORIZON,
    )


def test_members_run_the_same_episodes_and_a_step_runs_others():
    noise = stateless(lambda theta, key: jax.random.normal(key))
    state, dispatch = begin("noise_reuse_es", [noise], optax.sgd(1.0), length=6, num_samples=2, normalize="none")
    state, metrics = dispatch(state)
    # Members on episodes of their own would move theta by about 1 / (sigma sqrt(members)) = 2.5 a step.
    np.testing.assert_allclose(state.theta, THETA, atol=1e-5)
    assert len(set(np.asarray(metrics["meta_loss"]).tolist())) == 6


def test_a_member_that_is_not_finite_counts_as_the_worst_of_its_column():
    losses = jnp.array([[1.0, jnp.nan, jnp.inf], [jnp.nan, 5.0, jnp.nan], [3.0, 7.0, jnp.nan], [2.0, 6.0, -jnp.inf]])
    kept, usable = fitness.finite(losses)
    np.testing.assert_array_equal(usable, [True, True, False])
    np.testing.assert_array_equal(kept, [[1, 7, 0], [3, 5, 0], [3, 7, 0], [2, 6, 0]])
    # The column that is left out has no part in the mean.
    np.testing.assert_allclose(fitness.combine(kept, usable, "none"), [4, 4, 5, 4])


def test_normalizations():
    losses, usable = jnp.array([[1.0, 7.0], [3.0, 7.0], [3.0, 7.0], [9.0, 7.0]]), jnp.array([True, False])
    combine = lambda name: fitness.combine(losses, usable, name)
    np.testing.assert_allclose(combine("none"), [1, 3, 3, 9])
    np.testing.assert_allclose(combine("rank"), [-1 / 2, 0, 0, 1 / 2], atol=1e-7)  # equal losses, equal ranks
    np.testing.assert_allclose(combine("zscore"), np.array([-3, -1, -1, 5]) / 3, rtol=1e-6)  # mean 4, variance 9
    # A column without a difference says nothing, and divides nothing by zero.
    np.testing.assert_array_equal(fitness.combine(losses[:, 1:], jnp.array([True]), "zscore"), jnp.zeros(4))


def test_a_badly_scaled_column_does_not_drown_the_other():
    """Two columns of opposite order, one ten thousand times the other."""
    losses = jnp.arange(4.0)[:, None] * jnp.array([1.0, -1e4])
    both = jnp.array([True, True])
    assert fitness.combine(losses, both, "none")[0] == 0 and fitness.combine(losses, both, "none")[3] < -1e4
    for name in ("zscore", "rank"):
        np.testing.assert_allclose(fitness.combine(losses, both, name), jnp.zeros(4), atol=1e-6)


@pytest.mark.parametrize("name", ["zscore", "rank"])
def test_in_lockstep_windows_keep_their_weight(name):
    """Columns a_c b_u x_m of window u: f is b_u times the mean of a, whatever a column's own scale."""
    members, both = jnp.array([1.0, -2.0, 5.0, 4.0]), jnp.array([True, True])
    of_window = lambda window: fitness.combine(
        window * members[:, None] * jnp.array([1.0, 99.0]), both, name, lockstep=True
    )
    np.testing.assert_allclose(of_window(7.0), 7 * of_window(1.0), rtol=1e-5)
    if name == "zscore":
        np.testing.assert_allclose(of_window(1.0), 50 * (members - 2), rtol=1e-5)


def test_a_badly_scaled_problem_does_not_decide_alone():
    """The optima of two problems are (1, 0) and (0, 1), the loss of the second is 1e4 times the other's.

    Left as they are, the losses' sum is least at (1e-4, 1).
    """
    squared = lambda goal, scale: stateless(lambda theta, key: scale * jnp.sum((theta - jnp.array(goal)) ** 2))
    problems = [squared([1.0, 0.0], 1.0), squared([0.0, 1.0], 1e4)]
    state, dispatch = begin("snes", problems, optax.identity(), length=100, normalize="zscore")
    theta = dispatch(state)[0].theta
    # Anywhere between the two: what one gains the other loses, in units of its own spread.
    np.testing.assert_allclose(jnp.sum(theta), 1.0, atol=0.02)
    assert 0.2 < theta[0] < 0.8


def broken(is_bad):
    """The linear system, with a loss that is not finite for those theta and outer steps."""
    base = linear_system(HORIZON)
    reset = lambda theta, key, outer_step: base.reset(theta, key, outer_step)._replace(problem=outer_step)

    def step(theta, episode):
        bad = is_bad(theta, episode.problem)
        episode, loss = base.step(theta, episode)
        return episode, jnp.where(bad, jnp.nan, loss)

    return base._replace(reset=reset, step=step)


@pytest.mark.parametrize("name", ["open_es", "persistent_es"])
def test_losses_that_are_not_finite(name):
    """All of them in the first episode, later those of about half of the members."""
    problem = broken(lambda theta, outer_step: (outer_step == 0) | (theta[0] > THETA[0]))
    num_silent = HORIZON // WINDOW if name in LOCKSTEP else 1

    def at_rest(state):
        # The first episode goes on to its end, and its noise and clock with it.
        search = state.opt_state.state
        return jax.tree.map(np.array, (search.mean, search.opt_state) if name in LOCKSTEP else search)

    state, dispatch = begin(name, [problem], optax.adam(0.05))
    before, rows = at_rest(state), []
    for i in range(40):
        state, metrics = dispatch(state)
        rows.append({name: float(value[0]) for name, value in metrics.items()})
        if i == num_silent - 1:
            jax.tree.map(np.testing.assert_array_equal, at_rest(state), before)
            np.testing.assert_array_equal(state.theta, THETA)
    column = lambda name: np.array([row[name] for row in rows])
    np.testing.assert_array_equal(column("skipped"), np.arange(40) < num_silent)
    np.testing.assert_array_equal(column("problem_0/num_valid")[:num_silent], 0)
    assert 0 < column("problem_0/num_valid")[num_silent] < MEMBERS
    assert np.isfinite(state.theta).all()
    losses = column("meta_loss")
    assert losses[-4:].mean() < 0.9 * losses[num_silent : num_silent + 4].mean()


TINY = Recipe(
    family="hand",
    tasks="quadratics",
    episodes=Episodes(15, 15),
    estimator=Estimation(num_samples=2, window=5),
    strategy=Strategy("persistent_es", population=8),
    outer=OuterLoop(outer_steps=4, warmup=1),
    run=Run(steps_per_dispatch=2, save_every=2),
)


def test_a_run_that_is_cut_off_ends_with_the_same_theta(tmp_path, monkeypatch):
    """Cut off in the middle of the episodes: what is kept of them is restored too."""
    import orbax.checkpoint as ocp

    whole, cut, save = tmp_path / "whole", tmp_path / "cut", ocp.CheckpointManager.save
    training.train(TINY, whole)

    def full(self, step, *args, **kwargs):
        if step >= 4:
            raise OSError(28, "No space left on device")
        return save(self, step, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", full)
        with pytest.raises(UserError, match="No space left"):
            training.train(TINY, cut)
    assert (cut / "state" / "2").exists() and not (cut / "state" / "4").exists()
    training.resume(cut)
    (ours, step), (theirs, other) = training.read_theta(cut), training.read_theta(whole)
    assert step == other == 4
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    jax.tree.map(lambda x, y: np.testing.assert_array_less(0, np.abs(x - y)), ours, TINY.build_family().init(None))
    rows = [[json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (cut, whole)]
    for ours, theirs in zip(*rows, strict=True):
        assert ours | {"time": 0, "seconds": 0} == theirs | {"time": 0, "seconds": 0}
    assert rows[0][0]["inner_steps"] == 8 * 2 * 5 and rows[0][-1]["problem_0/num_valid"] == 16


@pytest.mark.parametrize(
    "changes, message",
    [
        (["strategy=cma"], "unknown strategy 'cma'; did you mean 'cma_es'?"),
        (["strategy=open_es", "normalize=z"], "unknown normalization 'z'"),
        (["strategy=open_es", "population=7"], "population must be even and at least 4, got 7"),
        (["strategy=cma_es", "population=2"], "population must be even and at least 4, got 2"),
        (["strategy=snes", "sigma=0"], "a strategy needs a sigma above 0"),
        (["strategy=pgpe", "combine=sum"], "unknown combine 'sum'"),
        (["strategy=persistent_es", "longest=30"], "set shortest and longest to the same, got 15 and 30"),
        (["strategy=cma_es", "shaping=rank"], "shaping is for estimators: leave it out with strategy=cma_es"),
        (["strategy=cma_es", "sample_clip=2"], "sample_clip is for estimators"),
    ],
)
def test_mistakes_in_a_recipe(changes, message):
    with pytest.raises(UserError) as error:
        settings.override(TINY, changes)
    assert message in str(error.value)


def test_members_are_what_is_sharded_over_the_devices():
    assert TINY.num_sharded() == TINY.strategy.population == 8
    assert dataclasses.replace(TINY, strategy=Strategy()).num_sharded() == TINY.estimator.num_samples == 2


def test_what_cannot_be_built_is_refused():
    problem, tx = linear_system(HORIZON), optax.sgd(1.0)
    with pytest.raises(UserError, match="a strategy needs a sigma above 0"):
        build("snes", [problem], tx, devices.mesh(1), sigma=0.0)
    with pytest.raises(UserError, match="multiple of the 8 devices, got 12"):
        build("snes", [problem], tx, devices.mesh(8), population=12)
    with pytest.raises(UserError, match="covariance of all 10001 entries of theta: take sep_cma_es or snes"):
        build("cma_es", [problem], tx, devices.mesh(1), theta=jax.ShapeDtypeStruct((10_001,), jnp.float32))
    for other in (problem._replace(longest=0), linear_system(10)):
        with pytest.raises(UserError, match="needs episodes of one known length, a multiple of the window 3, got"):
            build("persistent_es", [other], tx, devices.mesh(1))
