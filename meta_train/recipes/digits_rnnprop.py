"""One to three minutes on two cores: RNNprop on one digits network, to see that it learns.

Expected: the meta-loss falls from 0.52 to -2.34, with estimator=pes to -2.33.
"""

from meta_train.recipe import Recipe

recipe = Recipe(
    suite="digits",
    optimizer="coordinate_lstm",
    settings={"rule": "rnnprop", "scale": 1e-2},
    outer_steps=100,
    longest=300,
    learning_rate=3e-3,
    warmup=20,
    save_every=100,
)
