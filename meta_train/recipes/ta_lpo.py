"""TA-LPO on the environments of recipe lpo, by the same ES: its drift knows how far training is."""

from meta_train.recipe import Episodes, Estimation, Family, OuterLoop, Recipe, Run

recipe = Recipe(
    family=Family("ta_lpo", {"hidden": 16, "largest_feature": 2.0}),
    tasks="agents-small",
    episodes=Episodes(split="train", objective="raw", shortest=48, longest=48),
    estimator=Estimation(name="es", sigma=0.03, num_samples=16, window=48, shaping="rank"),
    outer=OuterLoop(outer_steps=400, learning_rate=0.01, warmup=10),
    run=Run(steps_per_dispatch=5, save_every=25),
)
