"""Half an hour on one core: LPO on three small environments, begun as PPO.

Whole trainings of 48 updates by ES, ranks over 16 pairs; an outer step takes 4.2 s, ten of them with compiling a
minute. Seen so far, of a run of 500: the meta-loss, -62.8 at the start, was -65.7 to -66.1 at steps 135 to 200. Not
yet compared with PPO.
"""

from meta_train.recipe import Episodes, Estimation, Family, OuterLoop, Recipe, Run

recipe = Recipe(
    family=Family("lpo", {"hidden": 16, "largest_feature": 2.0}),
    tasks="agents-small",
    episodes=Episodes(split="train", objective="raw", shortest=48, longest=48),
    estimator=Estimation(name="es", sigma=0.03, num_samples=16, window=48, shaping="rank"),
    outer=OuterLoop(outer_steps=400, learning_rate=0.01, warmup=10),
    run=Run(steps_per_dispatch=5, save_every=25),
)
