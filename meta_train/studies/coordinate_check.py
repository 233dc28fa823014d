"""Coordinate check, ``metaopt coord-check``: how much the outputs of layers change, at several widths.

One batch is fitted for a few steps. Under muP the outputs of a layer change by the same amount
in a wide network as in a narrow one: the slope of this movement over width, on logarithmic
axes, is about 0. Under the standard parametrization (SP: N(0, 1 / fan_in) for every matrix, the
same updates at every width) all layers after a hidden layer move more in wider networks, with
slopes up to 1.

Source: the coordinate check of Yang et al., arXiv:2203.03466, appendix D.1; muLO,
arXiv:2406.00153, figure 2.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from matplotlib.figure import Figure

import metaopt
from metaopt import mup
from metaopt.core import Key, Params, PyTree
from metaopt.errors import UserError, unknown

ADAM, RATE = "adam", 1e-3  # name and learning rate of the hand-written reference; tuned at half the narrowest width
NUM_STEPS, NUM_SEEDS = 5, 3
BATCH_SIZE, NUM_CLASSES = 64, 10
HEAD = 16  # size of an attention head; wider networks have more heads


class MLP(nn.Module):
    """A network with three hidden layers for vectors."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(3):
            x = nn.relu(nn.Dense(self.width, name=f"layer_{i}")(x))
        return nn.Dense(NUM_CLASSES, name="output")(x)


class Transformer(nn.Module):
    """One block of attention and MLP, which classifies a sequence of tokens."""

    width: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(32, self.width, name="embed")(tokens)
        x = x + nn.MultiHeadDotProductAttention(self.width // HEAD, name="attention")(nn.LayerNorm()(x))
        y = nn.relu(nn.Dense(4 * self.width, name="mlp_0")(nn.LayerNorm()(x)))
        x = x + nn.Dense(self.width, name="mlp_1")(y)
        return nn.Dense(NUM_CLASSES, name="output")(nn.LayerNorm()(x).mean(axis=1))


class Problem(NamedTuple):
    """A batch of random inputs and labels, and a network that is fitted to it."""

    network: Callable[[int], nn.Module]  # width -> network
    inputs: jax.Array  # (BATCH_SIZE, ...)
    labels: jax.Array  # (BATCH_SIZE,)
    widths: tuple[int, ...]  # widths to compare, increasing


def problems() -> dict[str, Problem]:
    """The problems by the name of their network."""
    key, labels = jax.random.key(0), jax.random.randint(jax.random.key(1), (BATCH_SIZE,), 0, NUM_CLASSES)
    vectors, tokens = jax.random.normal(key, (BATCH_SIZE, 32)), jax.random.randint(key, (BATCH_SIZE, 8), 0, 32)
    return {
        "mlp": Problem(MLP, vectors, labels, (64, 128, 256, 512, 1024)),
        "transformer": Problem(Transformer, tokens, labels, (64, 128, 256, 512)),
    }


def write(optimizer: str, network: str, out: Path) -> dict[str, Any]:
    """Writes ``coordinate_check.json`` and ``coordinate_check.png``, and returns the contents of the first.

    Args:
      optimizer: ``adam`` or the name of a checkpoint. The muP multipliers of Adam are relative,
        those of a learned optimizer absolute, as in the meta-training of muLO.
      network: ``mlp`` or ``transformer``.
      out: folder for the two files.

    Raises:
      UserError: for an unknown network or checkpoint, a checkpoint that is no optimizer, or a folder
        that cannot be written.
    """
    if network not in problems():
        raise unknown("network", network, problems())
    tx = optax.adam(RATE) if optimizer == ADAM else _load(optimizer)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; choose another with --out") from error
    result = {"optimizer": optimizer, **measure(problems()[network], tx, relative=optimizer == ADAM)}
    (out / "coordinate_check.json").write_text(json.dumps(result) + "\n")
    draw(result).savefig(out / "coordinate_check.png", dpi=110)
    return result


def _load(name: str) -> optax.GradientTransformation:
    learned, theta, _ = metaopt.read(name)
    if learned.kind != "optimizer":
        raise UserError(f"the coordinate check is for optimizers, {name} is of kind {learned.kind}")
    return learned.bind(theta, num_steps=NUM_STEPS)


def measure(problem: Problem, tx: optax.GradientTransformation, relative: bool) -> dict[str, Any]:
    """Measures the movement of each layer at each width in NUM_STEPS, and its slope over width.

    Movement is the standard deviation, over batch and units, of the change of the outputs of a
    layer before any activation function; None if it is not finite.

    Args:
      problem: batch, network and widths.
      tx: optimizer.
      relative: whether the muP multipliers are relative to the narrowest width.

    Returns:
      JSON values: "movement" and "slopes" by parametrization and layer, and the settings.
    """
    at_widths = [_at_width(problem, tx, width, relative) for width in problem.widths]
    movement, slopes = {}, {}
    for name in ("muP", "SP"):
        movement[name] = {layer: [_plain(x[name][layer]) for x in at_widths] for layer in at_widths[0][name]}
        slopes[name] = {layer: slope(problem.widths, moved) for layer, moved in movement[name].items()}
    return {"widths": problem.widths, "steps": NUM_STEPS, "seeds": NUM_SEEDS, "movement": movement, "slopes": slopes}


def slope(widths: Sequence[int], movement: Sequence[float | None]) -> float | None:
    """Least-squares slope of log(movement) over log(width); None if a layer diverged or did not move."""
    moved = [x for x in movement if x]
    if len(moved) < len(movement):
        return None
    return _plain(np.polyfit(np.log(widths), np.log(moved), 1)[0])


def _plain(value: float) -> float | None:
    """Four digits; None if the value is not finite."""
    return float(f"{value:.4g}") if np.isfinite(value) else None


def _at_width(
    problem: Problem, tx: optax.GradientTransformation, width: int, relative: bool
) -> dict[str, dict[str, float]]:
    """The movement of each layer under muP and SP, mean over seeds."""
    network, inputs = problem.network(width), problem.inputs
    tensors = mup.infer(_shapes(problem, width), _shapes(problem, problem.widths[0] // 2), relative=relative)
    ones = jax.tree.map(lambda _: 1.0, tensors.kind)
    # Arguments of the jitted function, so that it is compiled once for both.
    parametrizations = {
        "muP": (tensors.multiplier, tensors.init_std, tensors.forward),
        "SP": (ones, jax.tree.map(lambda n: n**-0.5, tensors.fan_in), ones),
    }

    @jax.jit
    def movement(parametrization: tuple[PyTree, PyTree, PyTree], key: Key) -> dict[str, jax.Array]:
        multiplier, init_std, forward = parametrization
        optimizer = optax.chain(tx, mup.scale_updates(multiplier))
        params = network.init(key, inputs)["params"]
        params = mup.initialize(tensors._replace(init_std=init_std), params, key)

        def loss(params: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
            _, captured = network.apply({"params": params}, inputs, capture_intermediates=_is_layer)
            outputs: dict[Any, Any] = flatten_dict(captured["intermediates"])
            layers = {"/".join(path[:-1]): x for path, (x,) in outputs.items()}
            layers["output"] = forward["output"]["kernel"] * layers["output"]
            return optax.softmax_cross_entropy_with_integer_labels(layers["output"], problem.labels).mean(), layers

        def step(carry: tuple[Params, optax.OptState], _: None) -> tuple[tuple[Params, optax.OptState], None]:
            params, state = carry
            (value, layers), grads = jax.value_and_grad(loss, has_aux=True)(params)
            updates, state = optimizer.update(grads, state, params, value=value)
            return (optax.apply_updates(params, updates), state), None

        trained, _ = jax.lax.scan(step, (params, optimizer.init(params)), length=NUM_STEPS)
        return jax.tree.map(lambda after, before: jnp.std(after - before), loss(trained[0])[1], loss(params)[1])

    seeds = jax.random.split(jax.random.key(2), NUM_SEEDS)
    result = {}
    for name, parametrization in parametrizations.items():
        over_seeds = [movement(parametrization, key) for key in seeds]
        result[name] = jax.tree.map(lambda *xs: float(np.mean(xs)), *over_seeds)
    return result


def _shapes(problem: Problem, width: int) -> Params:
    """The shapes of the parameters of the network."""
    return jax.eval_shape(problem.network(width).init, jax.random.key(0), problem.inputs)["params"]


def _is_layer(module: nn.Module, _: str) -> bool:
    return isinstance(module, nn.Dense | nn.DenseGeneral | nn.Embed)


def table(result: dict[str, Any]) -> str:
    """A text table with the slopes of each layer."""
    mup_slopes, sp_slopes = result["slopes"]["muP"], result["slopes"]["SP"]
    lines = [f"{layer:20} {_shown(x):>6} {_shown(sp_slopes[layer]):>6}" for layer, x in mup_slopes.items()]
    return "\n".join([f"{'slope over width':20} {'muP':>6} {'SP':>6}", *lines])


def _shown(slope: float | None) -> str:
    return "none" if slope is None else f"{slope:.2f}"


def draw(result: dict[str, Any]) -> Figure:
    """Draws movement over width, under muP on the left and under SP on the right."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, (name, movement) in zip(figure.subplots(1, 2, sharey=True), result["movement"].items(), strict=True):
        for layer, moved in movement.items():
            label = f"{layer}: slope {_shown(result['slopes'][name][layer])}"
            axes.plot(result["widths"], np.array(moved, float), "o-", label=label)
        axes.set(title=f"{name}, {result['optimizer']}, {result['steps']} steps", xlabel="width")
        axes.set(xscale="log", yscale="log")
        axes.set_xticks(result["widths"], [str(width) for width in result["widths"]], minor=False)
        axes.xaxis.minorticks_off()
        axes.grid(alpha=0.3, linewidth=0.5)
        axes.legend(fontsize=8)
    figure.axes[0].set_ylabel("movement of the layer's outputs")
    return figure
