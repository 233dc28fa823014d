"""One to three minutes on two cores: Celo2 on one digits network, to see that it learns.

Expected: the meta-loss falls from -0.78 to -1.33, with estimator=pes to -1.39.
"""

from meta_train.recipe import Episodes, Family, OuterLoop, Recipe, Run

recipe = Recipe(
    family=Family("celo2", {"learning_rate": 1e-3}),
    tasks="digits",
    episodes=Episodes(longest=300),
    outer=OuterLoop(outer_steps=100, learning_rate=3e-3, warmup=20),
    run=Run(save_every=100),
)
