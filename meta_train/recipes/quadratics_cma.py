"""Seconds on one core: CMA-ES tunes what recipe quadratics tunes with PES and AdamW.

As many inner steps as there, 66,000 to 70,000 against 64,000. Over three seeds it ends at
learning rate 5.3 to 5.8 and momentum 0.30 to 0.43, with a meta-loss on 2,000 fresh episodes of
-3.28 each time; quadratics at -2.03 to -2.23, on its way: learning rate 0.10 to 0.13, momentum
0.94 to 0.96. With an outer learning rate ten times its own quadratics reaches -3.26; CMA-ES has
none to choose, and sigma 0.3 or 1 in place of 0.5 ends at -3.27 and -3.28.
"""

from meta_train.recipe import Episodes, Estimation, Family, OuterLoop, Recipe, Run, Strategy

recipe = Recipe(
    family=Family("hand", {"rule": "momentum", "learning_rate": 0.01}),
    tasks="quadratics",
    episodes=Episodes(shortest=50, longest=200),
    estimator=Estimation(num_samples=2, window=10, sigma=0.5),
    strategy=Strategy("cma_es", population=8),
    outer=OuterLoop(outer_steps=40, warmup=0),
    run=Run(save_every=40),
)
