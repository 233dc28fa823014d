"""One to three minutes on two cores: OPEN on one digits network, to see that it learns.

Expected: the meta-loss falls from -0.17 to -1.63, with estimator=pes to -1.66.
"""

from meta_train.recipe import Episodes, Family, OuterLoop, Recipe, Run

recipe = Recipe(
    family=Family("open", {"noisy": ""}),  # noise for all parameters, none is called actor
    tasks="digits",
    episodes=Episodes(longest=300),
    outer=OuterLoop(outer_steps=100, learning_rate=3e-3, warmup=20),
    run=Run(save_every=100),
)
