"""Constants of VeLO's per-parameter network, which Celo shares.

Source: google/learned_optimization, research/general_lopt/hyper_v2.py.
"""

from metaopt.optimizers.common.channels import NUM_VELO_CHANNELS
from metaopt.optimizers.common.moments import Decays

DECAYS = Decays(momentum=(0.9, 0.99, 0.999), rms=(0.999,), factored=(0.9, 0.99, 0.999))
LAYER_SIZES = (NUM_VELO_CHANNELS, 4, 4, 2)  # inputs, two hidden layers, direction and log step size
