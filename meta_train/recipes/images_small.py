"""The recipe of the shipped checkpoint small-fc-images: about an hour on two cores."""

from meta_train.recipe import Recipe

recipe = Recipe(
    suite="images-small",
    settings={"hidden": 8, "step_multiplier": 0.03, "schedule": True, "relative": True},
    shortest=200,
    longest=3000,
    num_pairs=16,
    outer_steps=3500,
    learning_rate=5e-3,
    warmup=100,
    save_every=50,
)
