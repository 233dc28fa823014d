"""Seconds on one core: Adam whose learning rate is a meta-parameter."""

import jax.numpy as jnp
import optax

from meta_train import Episodes, Estimation, OuterLoop, Recipe
from metaopt.core import Learned

tuned_adam = Learned(
    init=lambda key: {"log_rate": jnp.log(1e-3)},
    bind=lambda theta, num_steps=None: optax.adam(jnp.exp(theta["log_rate"])),
)
recipe = Recipe(
    family=tuned_adam,
    tasks="quadratics",
    episodes=Episodes(longest=200),
    estimator=Estimation(sigma=0.1),
    outer=OuterLoop(outer_steps=300, learning_rate=0.1, warmup=10),
)
