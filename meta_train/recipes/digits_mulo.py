"""One to three minutes on two cores: muLO on a digits network in muP at two widths, to see that it learns.

Expected: the meta-loss falls from 0.01 to -1.05, with estimator=pes to -1.04.
"""

from meta_train.recipe import Episodes, Estimation, Family, OuterLoop, Recipe, Run

recipe = Recipe(
    family=Family("small_fc", {"hidden": 32, "step_multiplier": 1e-2}),
    tasks="digits-mup",
    episodes=Episodes(longest=300),
    estimator=Estimation(num_samples=8),
    outer=OuterLoop(outer_steps=100, learning_rate=3e-3, warmup=20),
    run=Run(save_every=100),
)
