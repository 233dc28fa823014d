"""One minute on one core: a small LPG on gridworlds, to see that it learns.

ES-Single over whole lifetimes of 50 updates, signs of pairs on the same level. Expected over two seeds: the
meta-loss, minus the mean return over a lifetime, falls from -0.5 in the first 20 outer steps to -0.8 to -1.0 in
the last 20; it is noisy, because returns differ between levels. On 128 fresh levels agents begin with a return
of 0.48 +- 0.08 and end with 1.47 to 1.52 +- 0.19 (standard errors over levels); by a fresh theta with 0.73 +- 0.11,
by a hand-written advantage actor-critic, not tuned, with 1.64 +- 0.21. The learning rate is the better one of
0.02 and 0.05 on other levels. The recipe sees 128,000 updates of agents; the example of GROOVE, with 256 units,
12.8 million.
"""

from meta_train.recipe import Episodes, Estimation, Family, OuterLoop, Recipe, Run

recipe = Recipe(
    family=Family("lpg", {"hidden": 16}),
    tasks="gridworlds",
    episodes=Episodes(split="train", objective="raw", shortest=50, longest=50),
    estimator=Estimation(name="es_single", sigma=0.1, num_samples=16, window=50, shaping="sign"),
    outer=OuterLoop(outer_steps=80, learning_rate=0.05, warmup=5),
    run=Run(save_every=80),
)
