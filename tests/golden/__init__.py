"""Known answers computed with the reference implementations, and their replay.

A file ``PREFIX*.npz`` is replayed by ``REPLAYS[PREFIX]``, a function
``path -> list of (case, largest error in units of the tolerance)``: a case passes
up to 1. ``python -m tests.golden FILE...`` prints them.
"""

from collections.abc import Callable
from pathlib import Path

from tests.golden import estimators, per_parameter, rl_open

Case = tuple[str, float]
REPLAYS: dict[str, Callable[[Path], list[Case]]] = {
    "velo_mlp_lopt": per_parameter.replay_mlp,
    "velo_adafac_mlp_lopt": per_parameter.replay_small_fc,
    "rl_open": rl_open.replay,
    **estimators.REPLAYS,
}


def find_replay(path: Path) -> Callable[[Path], list[Case]] | None:
    """The replay with the longest prefix of the file's name, or None."""
    prefixes = [prefix for prefix in REPLAYS if path.name.startswith(prefix) and path.suffix == ".npz"]
    return REPLAYS[max(prefixes, key=len)] if prefixes else None
