"""draft"""

from meta_train.recipe import Recipe

recipe = Recipe(
    suite="mnist-deep",
    optimizer="hand",
    settings={"rule": "adamw", "num_tensors": 12},
    shortest=1000,
    longest=1000,
    objective="linear",
    num_samples=16,
    window=50,
    sigma=0.1,
    outer_steps=2000,
    learning_rate=2e-2,
    warmup=20,
)
