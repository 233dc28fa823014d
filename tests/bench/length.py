"""What the planned length of training is worth: the digits network, trained with plans that turn out wrong.

``small-fc-images`` on 64-32-10, batch 64, 1,000 steps but where said; medians over ten seeds of the loss on
all training and all validation images.
"""

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

import metaopt
from tasks import data

BATCH, SEEDS = 64, 10


class Stage(NamedTuple):
    steps: int  # how many are taken
    num_steps: int  # how many the optimizer is told
    fresh: bool = False  # whether its state is new: a restart


PLANS = {
    "known": [Stage(1000, 1000)],
    "half, then bound again": [Stage(500, 500), Stage(500, 1000)],
    "an eighth, doubled three times": [Stage(125, 125), Stage(125, 250), Stage(250, 500), Stage(500, 1000)],
    "half, restarted": [Stage(500, 500), Stage(500, 500, fresh=True)],
    "half, gone on beyond it": [Stage(1000, 500)],
    "ten times too long": [Stage(1000, 10_000)],
    "half, and stopped there": [Stage(500, 500)],
}


def main() -> None:
    for name, plan in PLANS.items():
        train, valid = (jnp.median(x) for x in jax.jit(jax.vmap(losses(plan)))(jnp.arange(SEEDS)))
        row = {"bench": "length", "plan": name, "train": round(float(train), 4), "valid": round(float(valid), 4)}
        print(json.dumps(row), flush=True)


def losses(plan: list[Stage], optimizer: str = "small-fc-images"):
    """The function from a seed to the losses on training and validation images after a plan."""
    digits = data.load("digits")
    begin, middle, end, _ = digits.bounds
    images = jnp.asarray(digits.images.reshape(len(digits.labels), -1) / 255.0, jnp.float32)
    labels = jnp.asarray(digits.labels)
    splits = [(images[begin:middle], labels[begin:middle]), (images[middle:end], labels[middle:end])]

    def of_seed(seed: jax.Array) -> list[jax.Array]:
        key = jax.random.key(seed)
        params, state = init(key), None
        for i, stage in enumerate(plan):
            tx = metaopt.load(optimizer, num_steps=stage.num_steps)
            if state is None or stage.fresh:
                state = tx.init(params)
            keys = jax.random.split(jax.random.fold_in(key, i), stage.steps)
            params, state = train(tx, params, state, splits[0], keys)
        return [loss(params, *split) for split in splits]

    return of_seed


def train(tx, params, state, split, keys):
    """One step for each key; an optimizer bound to another length goes on with the state of the last one."""
    images, labels = split

    def step(carry, key):
        params, state = carry
        batch = jax.random.randint(key, (BATCH,), 0, len(labels))
        value, grads = jax.value_and_grad(loss)(params, images[batch], labels[batch])
        updates, state = tx.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, state), keys)[0]


def init(key: jax.Array) -> dict[str, jax.Array]:
    k0, k1 = jax.random.split(key)
    w0, w1 = jax.random.normal(k0, (64, 32)) / 8.0, jax.random.normal(k1, (32, 10)) / 32.0**0.5
    return {"w0": w0, "b0": jnp.zeros(32), "w1": w1, "b1": jnp.zeros(10)}


def loss(params: dict[str, jax.Array], images: jax.Array, labels: jax.Array) -> jax.Array:
    logits = jax.nn.relu(images @ params["w0"] + params["b0"]) @ params["w1"] + params["b1"]
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


if __name__ == "__main__":
    main()
