"""One to three minutes on two cores: Celo on one digits network, to see that it learns.

Expected: the meta-loss falls from -0.05 to -0.8, with estimator=pes to -0.77.
"""

from meta_train.recipe import Episodes, Family, OuterLoop, Recipe, Run

recipe = Recipe(
    family=Family("celo", {"hidden": 16, "step_multiplier": 1e-2}),
    tasks="digits",
    episodes=Episodes(longest=300),
    outer=OuterLoop(outer_steps=100, learning_rate=3e-3, warmup=20),
    run=Run(save_every=100),
)
