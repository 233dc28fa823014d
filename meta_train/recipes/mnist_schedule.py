"""Under four minutes on one core: the rate and the decay of SGD with momentum on MNIST.

Two meta-parameters, the learning rate 1e-3 / (1 + t / 200)^0 to begin with; momentum stays
at 0.9. Expected: (0.031, 1.05), where the best of a grid is (0.027, 1.0); a mean validation loss along
2,000 steps of 0.265, where it has 0.264 and the best constant rate 0.293. With
estimator=pes: (0.033, 1.16) and 0.264. The picture beside this file was drawn by

    metaopt schedule-study runs/es-single runs/pes runs/es-single-short runs/pes-short

from both, and from both with num_samples=4 outer_steps=840 save_every=840
learning_rate=5e-2, which spends what the grid spends, a tenth, and arrives as well. With
the 16 pairs of this recipe and 210 outer steps, or with its outer rate of 2e-2, the same
inner steps did not suffice.

The outer rate is twice the published 1e-2, for the cosine halves it in the mean; with 1e-2
and 8 pairs PES was on its way when 2,000 outer steps were over.

Source: Vicol et al., arXiv:2112.13835, the problem of learning-rate decay, at a smaller size.
"""

from meta_train.recipe import Episodes, Estimation, Family, OuterLoop, Recipe

recipe = Recipe(
    family=Family(
        "hand", {"rule": "momentum", "learning_rate": 1e-3, "decay_steps": 200, "fixed": "log_one_minus_momentum"}
    ),
    tasks="mnist-mlp",
    episodes=Episodes(shortest=2000, longest=2000, objective="linear"),
    estimator=Estimation(num_samples=16, window=50, sigma=0.1),
    outer=OuterLoop(outer_steps=2000, learning_rate=2e-2, warmup=20),
)
