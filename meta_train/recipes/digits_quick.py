"""Half a minute on two cores: a small_fc with 8 units on one digits network.

Expected: the meta-loss (mean log of the validation loss relative to its start) falls
from 0.4 to about -3. It learns its own task and little else.
"""

from meta_train.recipe import Episodes, Estimation, Family, OuterLoop, Recipe, Run

recipe = Recipe(
    family=Family("small_fc", {"hidden": 8, "step_multiplier": 0.03, "schedule": True, "relative": True}),
    tasks="digits",
    episodes=Episodes(longest=500),
    estimator=Estimation(sigma=0.03),
    outer=OuterLoop(outer_steps=300, learning_rate=1e-2, warmup=20),
    run=Run(save_every=100),
)
