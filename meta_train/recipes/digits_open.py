"""One to three minutes on two cores: OPEN on one digits network, to see that it learns.

Expected: the meta-loss falls from -0.19 to -1.69, with estimator=pes to -1.7.
"""

from meta_train.recipe import Recipe

recipe = Recipe(
    suite="digits",
    optimizer="open",
    outer_steps=100,
    longest=300,
    learning_rate=3e-3,
    warmup=20,
    save_every=100,
)
