"""draft"""

from meta_train.recipe import Recipe

recipe = Recipe(
    suite="mnist-mlp",
    optimizer="hand",
    settings={
        "rule": "momentum",
        "learning_rate": 1e-3,
        "decay_steps": 200,
        "fixed": "log_one_minus_momentum",
    },
    shortest=2000,
    longest=2000,
    objective="linear",
    num_samples=16,
    window=50,
    sigma=0.1,
    outer_steps=2000,
    learning_rate=2e-2,
    warmup=20,
)
