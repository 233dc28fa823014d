"""placeholder"""

from meta_train.recipe import Episodes, Estimation, Family, OuterLoop, Recipe, Run

recipe = Recipe(
    family=Family("lpg", {"hidden": 16}),
    tasks="gridworlds",
    episodes=Episodes(split="train", objective="raw", shortest=50, longest=50),
    estimator=Estimation(name="es_single", sigma=0.1, num_samples=16, window=50, shaping="sign"),
    outer=OuterLoop(outer_steps=100, learning_rate=2e-2, warmup=5),
    run=Run(save_every=100),
)
