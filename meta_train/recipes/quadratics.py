"""Seconds on one core: learning rate and momentum for noisy quadratics.

Hand-written optimizers are meta-trained like any other; expected: the learning rate
grows from 0.01 and the meta-loss falls.
"""

from meta_train.recipe import Episodes, Estimation, Family, OuterLoop, Recipe

recipe = Recipe(
    family=Family("hand", {"rule": "momentum", "learning_rate": 0.01}),
    tasks="quadratics",
    episodes=Episodes(shortest=50, longest=200),
    estimator=Estimation(name="pes", window=10, sigma=0.1),
    outer=OuterLoop(outer_steps=200, learning_rate=3e-2, warmup=10),
)
