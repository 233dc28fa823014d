"""Seconds on one core: learning rate and momentum for noisy quadratics.

Hand-written optimizers are meta-trained like any other; expected: the learning rate
grows from 0.01 and the meta-loss falls.
"""

from meta_train.recipe import Recipe

recipe = Recipe(
    suite="quadratics",
    optimizer="hand",
    settings={"rule": "momentum", "learning_rate": 0.01},
    estimator="pes",
    shortest=50,
    longest=200,
    window=10,
    sigma=0.1,
    outer_steps=200,
    learning_rate=3e-2,
    warmup=10,
)
