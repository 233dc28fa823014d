"""A family of a user's own, as a module: Config and build, like the families of metaopt."""

import dataclasses

import jax.numpy as jnp
import optax

from metaopt.core import Learned


@dataclasses.dataclass(frozen=True)
class Config:
    rate: float = 0.05


def build(config: Config) -> Learned:
    return Learned(
        init=lambda key: {"log_rate": jnp.log(config.rate)},
        bind=lambda theta, num_steps=None: optax.sgd(jnp.exp(theta["log_rate"])),
    )
