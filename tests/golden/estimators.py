"""Replays of meta-gradient estimators, fed with the perturbations that were stored."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from meta_train.estimators import ESTIMATORS, es, samples
from meta_train.estimators.samples import Samples, Sampling
from meta_train.inner import toys
from meta_train.parallel import devices
from metaopt.core import Episode, InnerProblem

LOSS_RTOL, GRAD_RTOL = 1e-5, 2e-5  # spec 10.1; the second relative to the largest entry
METHODS = {"es": "truncated_es", "pes": "pes", "es_single": "es_single", "gpes": "gpes"}


def influence(data) -> tuple[InnerProblem, float]:
    problem = toys.influence_balancing(int(data["K"]))
    state = problem.reset(None, None, 0)
    assert np.array_equal(state.inner, data["s0"])
    return problem, 1.0


def quadlin(data) -> tuple[InnerProblem, float]:
    read = lambda name: jnp.asarray(data[name])
    problem = toys.quadratic(read("H"), read("B"), read("x0"), read("x_star"), float(data["inner_lr"]), toys.NEVER)
    return problem, float(data["K"])


def quadopt(data) -> tuple[InnerProblem, float]:
    """SGD with momentum on 1/2 x'Hx; theta is log rate and logit momentum."""
    hessian, start = jnp.asarray(data["H"]), jnp.asarray(data["x0"])

    def reset(theta, key, outer_step):
        del theta, outer_step
        return Episode(key, jnp.int32(0), jnp.int32(toys.NEVER), (), (start, jnp.zeros_like(start)))

    def step(theta, episode):
        x, momentum = episode.inner
        momentum = jax.nn.sigmoid(theta[1]) * momentum + hessian @ x
        x = x - jnp.exp(theta[0]) * momentum
        return episode._replace(step=episode.step + 1, inner=(x, momentum)), 0.5 * x @ hessian @ x

    return InnerProblem(reset, step), float(data["K"])


def replay(build, path) -> list[tuple[str, float]]:
    """Every method with theta fixed and moving; RTRL and truncated backpropagation exactly.

    Losses are compared pair by pair, estimates as their mean over pairs. The reference
    window loss is ``scale`` times the mean over steps that estimators take.
    """
    data = np.load(path)
    problem, scale = build(data)
    cases = []
    for stored, name in METHODS.items():
        run = compiled(name, problem, data)
        for mode in ("fixed", "online"):
            read = lambda what, s=f"{stored}_{mode}": data[f"{s}_{what}"]
            thetas = jnp.asarray(read("theta"))
            pairs = [run(thetas[:-1], jnp.uint32(i)) for i in range(len(read("Lp")[0]))]
            grads, means, differences = (np.stack(x) * scale for x in zip(*pairs, strict=True))
            losses = np.stack([means + differences / 2, means - differences / 2]).transpose(0, 2, 1)
            expected = np.sort([read("Ln"), read("Lp")], axis=0)[::-1]
            error = np.max(np.abs(losses - expected) / np.abs(expected)) / LOSS_RTOL
            cases.append((f"{name}/{mode}/losses", float(error)))
            cases.append((f"{name}/{mode}/estimate", worst(grads.mean(axis=0), read("G"))))
            moved = thetas[:-1] - data["lr"] * grads.mean(axis=0) * (mode == "online")
            cases.append((f"{name}/{mode}/theta", float(np.max(np.abs(moved - thetas[1:]))) / 1e-5))
    for name, stored in (("rtrl", "true_grad"), ("tbptt", "trunc_grad")):
        thetas = jnp.broadcast_to(data["theta0"], data[stored].shape)
        grads = compiled(name, problem, data, sigma=0.0)(thetas, jnp.uint32(0))[0] * scale
        cases.append((name, worst(grads, data[stored])))
    return cases


def worst(actual, expected) -> float:
    return float(np.max(np.abs(actual - expected)) / (GRAD_RTOL * np.max(np.abs(expected))))


def compiled(name: str, problem: InnerProblem, data, sigma: float | None = None):
    """``(thetas (windows, P), index of a pair) -> (grads, mean losses, differences)``."""
    sigma = float(data["sigma"]) if sigma is None else sigma
    config = Sampling(num_samples=1, window=int(data["K"]), sigma=sigma, staggered=False)
    eps = jnp.asarray(data["eps"])

    def stored(theta, sample: Samples, sigma, purpose="noise"):
        del theta, sigma, purpose
        return eps[sample.draw - 1, jax.random.key_data(sample.key)[1]]

    @jax.jit
    def run(thetas, pair):
        with mock.patch.object(samples, "perturbation", stored):
            estimator = ESTIMATORS[name](problem, config, devices.mesh(1))
            state = estimator.init(thetas[0], jax.random.key(0))
            # The key of a sample says which pair it is.
            state = state._replace(key=jax.random.wrap_key_data(jnp.stack([jnp.uint32(0), pair]))[None])

            def window(state, theta):
                grad, state, metrics = estimator.estimate(theta, state, 0)
                return state, (grad, metrics["meta_loss"], metrics.get("difference", 0.0))

            return jax.lax.scan(window, state, thetas)[1]

    return run


def replay_resets(path) -> list[tuple[str, float]]:
    """PES where episodes end inside the reference's windows.

    Here an episode ends where a window does, so each of its windows is cut there, and the
    rule for the weight is given what lies before and behind the cut. What it must equal is the reference's
    corrected rule; the published one forgets the history of the last step (spec 3.2).
    """
    data = np.load(path)
    num_steps, num_pairs = data["mask"].shape
    draw = es.accumulated(Sampling(window=1, sigma=float(data["std"])), windows_per_draw=1).draw
    grads, memories = [], []
    for pair in range(num_pairs):
        eps, memory = jnp.asarray(data["eps"][pair]), jnp.asarray(data["accumulator"][pair])
        episode = Episode(None, jnp.int32(1), None, None, None)
        grad, done, weight = np.zeros(3), False, None
        with mock.patch.object(samples, "perturbation", lambda *_, e=eps: e):
            for t in range(num_steps):
                if not data["mask"][t, pair]:  # the slot of a reset belongs to the next episode
                    done, weight = True, None
                    continue
                if weight is None:
                    sample = Samples(None, jnp.int32(0), jnp.bool(done), episode, memory)
                    _, weight, sample = draw(eps, sample)
                    memory = sample.memory
                grad += np.asarray(weight) * (data["pos_loss"][t, pair] - data["neg_loss"][t, pair])
        grads.append(grad / (2 * data["std"] ** 2))
        memories.append(jnp.zeros(3) if data["is_done"][-1, pair] else memory)
    counts = data["mask"].sum(axis=0)
    error = lambda actual, expected: float(np.max(np.abs(actual - expected) / (1e-4 * np.max(np.abs(expected)))))
    mean = np.mean([g / c for g, c in zip(grads, counts, strict=True)], axis=0)
    return [
        ("gradient, mean over pairs", error(mean, data["corrected_pes_grad"])),
        ("gradient, pooled", error(np.sum(grads, axis=0) / counts.sum(), data["corrected_pes_grad_pooled"])),
        ("accumulator", error(np.stack(memories), data["corrected_new_accumulator"])),
    ]


REPLAYS = {
    "est_influence": functools.partial(replay, influence),
    "est_quadlin": functools.partial(replay, quadlin),
    "est_quadopt": functools.partial(replay, quadopt),
    "est_reset": replay_resets,
}
