"""Half a minute on two cores: a small_fc with 8 units on one digits network.

Expected: the meta-loss (mean log of the validation loss relative to its start) falls
from 0.4 to about -3. It learns its own task and little else.
"""

from meta_train.recipe import Recipe

recipe = Recipe(
    suite="digits",
    settings={"hidden": 8, "step_multiplier": 0.03, "schedule": True, "relative": True},
    sigma=0.03,
    outer_steps=300,
    longest=500,
    learning_rate=1e-2,
    warmup=20,
    save_every=100,
)
