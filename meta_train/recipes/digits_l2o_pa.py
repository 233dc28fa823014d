"""One to three minutes on two cores: L2O-PA on one digits network, to see that it learns.

Expected: the meta-loss falls from -0.55 to -2.43, with estimator=pes to -2.11.
"""

from meta_train.recipe import Episodes, Family, OuterLoop, Recipe, Run

recipe = Recipe(
    family=Family("l2o_pa", {"step_size": 0.3}),
    tasks="digits",
    episodes=Episodes(longest=300),
    outer=OuterLoop(outer_steps=100, learning_rate=3e-3, warmup=20),
    run=Run(save_every=100),
)
