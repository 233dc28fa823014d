"""One to three minutes on two cores: Celo on one digits network, to see that it learns.

Expected: the meta-loss falls from -0.05 to -0.8, with estimator=pes to -0.77.
"""

from meta_train.recipe import Recipe

recipe = Recipe(
    suite="digits",
    optimizer="celo",
    settings={"hidden": 16, "step_multiplier": 1e-2},
    outer_steps=100,
    longest=300,
    learning_rate=3e-3,
    warmup=20,
    save_every=100,
)
