"""One to three minutes on two cores: muLO on a digits network in muP at two widths, to see that it learns.

Expected: the meta-loss falls from 0.01 to -1.05, with estimator=pes to -1.04.
"""

from meta_train.recipe import Recipe

recipe = Recipe(
    suite="digits-mup",
    optimizer="small_fc",
    settings={"hidden": 32, "step_multiplier": 1e-2},
    outer_steps=100,
    num_samples=8,
    longest=300,
    learning_rate=3e-3,
    warmup=20,
    save_every=100,
)
