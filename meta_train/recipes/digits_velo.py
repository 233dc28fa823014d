"""One to three minutes on two cores: VeLO with a small LSTM on one digits network, to see that it learns.

Expected: the meta-loss falls from 0.51 to -1.5, with estimator=pes to -1.93.
"""

from meta_train.recipe import Episodes, Estimation, Family, OuterLoop, Recipe, Run

recipe = Recipe(
    family=Family("velo", {"hidden": 16, "bank": 8, "step_multiplier": 3e-3}),
    tasks="digits",
    episodes=Episodes(longest=300),
    estimator=Estimation(sigma=0.03),
    outer=OuterLoop(outer_steps=100, learning_rate=1e-2, warmup=20),
    run=Run(save_every=100),
)
