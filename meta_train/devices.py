"""The devices a run is spread over."""

import os

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

SAMPLE_AXIS = "sample"  # the mesh axis that the samples of an estimator are spread over


def make_cpu_devices(num_samples: int, num_devices: int | None = None) -> None:
    """Splits the CPU into devices; called before anything runs. Accelerators are as they are.

    Args:
      num_samples: that will be spread over the devices.
      num_devices: by default as many as there are cores and the samples divide over.
    """
    if num_devices is None:
        num_devices = max(n for n in range(1, (os.cpu_count() or 1) + 1) if num_samples % n == 0)
    jax.config.update("jax_num_cpu_devices", num_devices)


def mesh(num_devices: int | None = None) -> Mesh:
    """A one-dimensional mesh over the first ``num_devices`` devices, all by default."""
    return Mesh(np.array(jax.devices()[:num_devices]), (SAMPLE_AXIS,), axis_types=(AxisType.Auto,))
