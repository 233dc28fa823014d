"""Four minutes on one core: L2O-PA for sparse regression, 20 equations in 40 unknowns.

As published: truncated backpropagation, five windows of 20 steps, gradients of the inner
problem not differentiated. Expected: the meta-loss, F relative to its start, ends near 0.10;
fresh regressions come within 1e-3 of the optimum in 13 steps (median), FISTA in 28, and
stay there at ten times the horizon: ``python -m tests.bench.lasso RUN``.
"""

from meta_train.recipe import Episodes, Estimation, Family, OuterLoop, Recipe

recipe = Recipe(
    family=Family("l2o_pa", {"l1": 0.1}),
    tasks="lasso",
    episodes=Episodes(objective="linear", first_order=True, shortest=100, longest=100),
    estimator=Estimation(name="tbptt", sigma=0.0, num_samples=64, window=20),
    outer=OuterLoop(outer_steps=2500, learning_rate=1e-2, warmup=0),
)
