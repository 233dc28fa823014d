"""ta_lpo: temporally-aware LPO, whose drift changes in the course of training.

Source: Jackson et al., "Discovering temporally-aware reinforcement learning algorithms",
arXiv:2402.05828, section 4.
"""

import jax
import jax.numpy as jnp

from metaopt.core import Drift, Key, Learned, Theta
from metaopt.objectives import lpo
from metaopt.objectives.lpo import Config

DEFAULT = Config()


def build(config: Config = DEFAULT) -> Learned:
    """Returns TA-LPO: LPO with the features (x, u x), u the fraction of training that is done.

    They are multiplied, not appended: at a ratio of one they stay zero. The drift needs
    ``progress=u``, which is constant within an update of PPO.

    Raises:
      ValueError: from the drift, without ``progress``.
    """

    def init(key: Key) -> Theta:
        return lpo.init_network(key, 2 * lpo.NUM_FEATURES, config)

    def bind(theta: Theta, num_steps: jax.Array | int | None = None) -> Drift:
        del num_steps

        def ta_lpo(log_ratio: jax.Array, advantage: jax.Array, progress: jax.Array | float | None = None) -> jax.Array:
            if progress is None:
                raise ValueError(
                    "ta_lpo looks at the fraction of training that is done: call "
                    "drift(log_ratio, advantage, progress=update / num_updates)"
                )
            x = lpo.features(log_ratio, advantage, config.largest_feature)
            x = jnp.concatenate([x, progress * x], axis=-1)
            return lpo.of_network(theta, x, log_ratio, advantage, config)

        return ta_lpo

    return Learned(init, bind, "drift")
