"""A minute on two cores: an 8-unit small_fc on one digits network.

Expected: the meta-loss falls from about -0.5 to below -2 (mean log of the validation
loss relative to its start). It learns its own task and little else.
"""

from meta_train.recipe import Recipe

recipe = Recipe(
    suite="digits",
    settings={"hidden": 8, "step_multiplier": 0.01},
    outer_steps=200,
    longest=500,
    learning_rate=1e-2,
    warmup=20,
    save_every=50,
)
