"""metaopt: meta-learned optimization in JAX.

tx = metaopt.load("small-fc-images", num_steps=10_000)
updates, state = tx.update(grads, state, params, value=loss)
"""

from metaopt import mup
from metaopt.checkpoint import list_pretrained, load, read, save
from metaopt.compose import compose
from metaopt.errors import UserError
from metaopt.evaluation import evaluate
from metaopt.families import FAMILIES, KINDS, build
from metaopt.sharding import state_sharding

__version__ = "0.1.0"
__all__ = [
    "FAMILIES",
    "KINDS",
    "UserError",
    "build",
    "compose",
    "evaluate",
    "list_pretrained",
    "load",
    "mup",
    "read",
    "save",
    "state_sharding",
]
