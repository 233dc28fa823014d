"""Hand-written drifts to compare with, each tuned by one number: the clip of PPO, the alpha of DPO."""

import jax
import jax.numpy as jnp

from metaopt.core import Drift
from metaopt.families import Baseline
from metaopt.objectives import dpo, ppo


def _ppo(clip: jax.Array, num_steps: int) -> Drift:
    return ppo.build().bind({"log_clip": jnp.log(clip)}, num_steps=num_steps)


def _dpo(alpha: jax.Array, num_steps: int) -> Drift:
    published = dpo.build().init(jax.random.key(0))
    return dpo.build().bind(published | {"log_alpha": jnp.log(alpha)}, num_steps=num_steps)


BASELINES = {
    "ppo": Baseline(_ppo, (0.05, 0.1, 0.2, 0.3, 0.4)),
    "dpo": Baseline(_dpo, (0.5, 1.0, 2.0, 4.0, 8.0)),
}
