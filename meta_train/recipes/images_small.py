"""The recipe of the shipped checkpoint small-fc-images: about an hour on two cores."""

from meta_train.recipe import Recipe

recipe = Recipe(
    suite="images-small",
    settings={"hidden": 8, "step_multiplier": 0.03, "schedule": True, "relative": True},
    shortest=100,
    longest=2500,
    num_pairs=8,
    sigma=0.03,
    outer_steps=5000,
    learning_rate=2e-3,
    warmup=100,
)
