"""Learning theta: recipes, inner problems, estimators, the outer loop, runs.

result = meta_train.train(Recipe(family="small_fc", tasks="digits"))
tx = result.algorithm(num_steps=1000)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meta_train.recipe import Episodes, Estimation, Family, OuterLoop, Recipe, Run
    from meta_train.strategies import Strategy
    from meta_train.training import Result, resume, train

__all__ = [
    "Episodes",
    "Estimation",
    "Family",
    "OuterLoop",
    "Recipe",
    "Result",
    "Run",
    "Strategy",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    """Imports what is exported when it is first used: the command begins before JAX is there, ready for Ctrl-C."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    is_training = name in ("Result", "resume", "train")
    return getattr(importlib.import_module("meta_train.training" if is_training else "meta_train.recipe"), name)
