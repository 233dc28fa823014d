"""The devices a run is spread over."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

PAIR_AXIS = "pair"  # the mesh axis that the samples of an estimator are spread over


def mesh(num_devices: int | None = None) -> Mesh:
    """A one-dimensional mesh over the first ``num_devices`` devices, all by default."""
    return Mesh(np.array(jax.devices()[:num_devices]), (PAIR_AXIS,), axis_types=(AxisType.Auto,))
