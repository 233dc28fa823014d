"""The recipe of the shipped checkpoint small-fc-images: about an hour on two cores."""

from meta_train.recipe import Recipe

recipe = Recipe(
    suite="images-small",
    settings={"hidden": 8, "step_multiplier": 0.01},
    shortest=100,
    longest=2000,
    estimator="es_single",
    num_pairs=16,
    outer_steps=2000,
    learning_rate=3e-3,
    warmup=100,
)
