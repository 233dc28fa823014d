"""Kind "optimizer": gradient descent whose learning rate is learned, on quadratics."""

import jax.numpy as jnp
import optax

from meta_train import Episodes, Estimation, OuterLoop, Recipe
from metaopt.core import Key, Learned, Theta
from tasks import Quadratic


def family(rate: float = 0.01) -> Learned:
    """x <- x - exp(log_rate) grad f(x)."""

    def init(key: Key) -> Theta:
        del key
        return {"log_rate": jnp.log(rate)}

    def bind(theta: Theta, num_steps=None) -> optax.GradientTransformation:
        del num_steps
        return optax.sgd(jnp.exp(theta["log_rate"]))

    return Learned(init, bind)


def suite():
    return (Quadratic(dim=3),)


recipe = Recipe(
    family=family,
    tasks=suite,
    episodes=Episodes(shortest=20, longest=40),
    estimator=Estimation(name="pes", num_samples=8, window=10, sigma=0.1),
    outer=OuterLoop(outer_steps=100, learning_rate=0.1, warmup=5),
)
