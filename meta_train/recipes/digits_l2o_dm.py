"""One to three minutes on two cores: L2O-DM on one digits network, to see that it learns.

Expected: the meta-loss falls from 0.6 to -1.94, with estimator=pes to -1.9.
"""

from meta_train.recipe import Episodes, Family, OuterLoop, Recipe, Run

recipe = Recipe(
    family=Family("coordinate_lstm", {"rule": "l2o_dm", "scale": 1e-2}),
    tasks="digits",
    episodes=Episodes(longest=300),
    outer=OuterLoop(outer_steps=100, learning_rate=3e-3, warmup=20),
    run=Run(save_every=100),
)
