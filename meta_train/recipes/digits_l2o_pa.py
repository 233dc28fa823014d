"""One to three minutes on two cores: L2O-PA on one digits network, to see that it learns.

Expected: the meta-loss falls from -0.55 to -2.43, with estimator=pes to -2.11.
"""

from meta_train.recipe import Recipe

recipe = Recipe(
    suite="digits",
    optimizer="l2o_pa",
    settings={"step_size": 0.3},
    outer_steps=100,
    longest=300,
    learning_rate=3e-3,
    warmup=20,
    save_every=100,
)
