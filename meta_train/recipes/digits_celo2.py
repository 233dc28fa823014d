"""One to three minutes on two cores: Celo2 on one digits network, to see that it learns.

Expected: the meta-loss falls from -0.78 to -1.33, with estimator=pes to -1.39.
"""

from meta_train.recipe import Recipe

recipe = Recipe(
    suite="digits",
    optimizer="celo2",
    settings={"learning_rate": 1e-3},
    outer_steps=100,
    longest=300,
    learning_rate=3e-3,
    warmup=20,
    save_every=100,
)
