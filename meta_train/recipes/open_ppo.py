"""Three minutes on one core: OPEN on agents, where it was made for, with all its inputs alive.

Whole trainings of 48 updates by ES, ranks over 8 pairs; 16 steps of the optimizer in each update.
"""

from meta_train.recipe import Episodes, Estimation, Family, OuterLoop, Recipe, Run
from tasks import PPO

recipe = Recipe(
    family=Family("open", {"num_minibatches": 4, "num_epochs": 4}),
    tasks=(PPO("CartPole-v1", num_environments=8, rollout_steps=64, width=32),),
    episodes=Episodes(split="train", objective="raw", shortest=48, longest=48),
    estimator=Estimation(name="es", sigma=0.03, num_samples=8, window=48, shaping="rank"),
    outer=OuterLoop(outer_steps=60, learning_rate=0.03, warmup=5),
    run=Run(steps_per_dispatch=5, save_every=60),
)
