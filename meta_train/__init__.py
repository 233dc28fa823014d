"""Learning theta: recipes, inner problems, estimators, the outer loop, runs.

result = meta_train.train(Recipe(family="small_fc", tasks="digits"))
tx = result.algorithm(num_steps=1000)
"""

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
