"""Results of the reference implementations, stored in files, and their replay.

A file ``PREFIX*.npz`` is replayed by ``REPLAYS[PREFIX]``, a function
``path -> list of (case, largest error in units of the tolerance)``; a case passes if
its error is at most 1; FileNotFoundError says which file outside the project it needs.
``python -m tests.golden FILE...`` prints them.
"""

from collections.abc import Callable
from pathlib import Path

from tests.golden import celo, drifts, estimators, mulo, per_parameter, rl_disco, rl_lpg, rl_open, velo

Case = tuple[str, float]
REPLAYS: dict[str, Callable[[Path], list[Case]]] = {
    "velo_mlp_lopt": per_parameter.replay_mlp,
    "velo_adafac_mlp_lopt": per_parameter.replay_small_fc,
    "velo_hyper_v2": velo.replay,
    "celo": celo.replay_celo,
    "celo2": celo.replay_celo2,
    "elo": celo.replay_elo,
    "mulo_adafac_mlp": mulo.replay,
    "rl_disco": rl_disco.replay,
    "rl_drift": drifts.replay,
    "rl_gae": drifts.replay_gae,
    "rl_lpg": rl_lpg.replay,
    "rl_open": rl_open.replay,
    **estimators.REPLAYS,
}


def find_replay(path: Path) -> Callable[[Path], list[Case]] | None:
    """The replay with the longest prefix of the file's name, or None."""
    prefixes = [prefix for prefix in REPLAYS if path.name.startswith(prefix) and path.suffix == ".npz"]
    return REPLAYS[max(prefixes, key=len)] if prefixes else None
