"""open: a GRU and an MLP on every coordinate, designed for reinforcement learning.

Its inputs address what makes reinforcement learning hard for optimizers: non-stationarity (the
progress of training), loss of plasticity (the depth of a layer, the dormancy of its neurons), and
exploration, for which it can add noise to its own steps.

Source: Goldie et al., "Can learned optimization make reinforcement learning less
difficult?", arXiv:2407.07082; AlexGoldie/rl-learned-optimization, rl_optimizer/network.py.
With a single update or a single epoch, progress is 0 / 0 in the reference and 0 here.
"""

import collections
import dataclasses
import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metaopt.core import Key, Learned, Params, PyTree, Theta
from metaopt.nn import gru, mlp
from metaopt.optimizers.common import coordinates, parameters, rule, tiling
from metaopt.optimizers.common.accumulators import ema
from metaopt.optimizers.common.stacking import Stacking
from metaopt.optimizers.common.trees import bare, by_tensor, each

MOMENTUM_DECAYS = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
NUM_INPUTS = 1 + 2 * (len(MOMENTUM_DECAYS) + 1) + 4
LOG_EPS = 1e-13  # added to the argument of a logarithm
ACTIVATION_EPS = 1e-11  # added to every activation, so that all of a layer may be zero
LAYER_NORM_EPS = 1e-6
NUMBERED = re.compile(r"\D(\d+)$")  # a tensor's name that ends in the number of its layer, but is no index of a list
INITIAL_NORM = {"scale": jnp.ones, "shift": jnp.zeros}  # weights of a layer normalization


@dataclasses.dataclass(frozen=True)
class Config:
    hidden: int = 8  # units of the GRU; the published larger optimizer has 16
    width: int = 16  # units in each of the two hidden layers of the MLP; the larger optimizer has 32
    step_multiplier: float = 1e-3  # scales the update
    exp_multiplier: float = 1e-3  # range of the learned log step size
    noise_multiplier: float = 1e-3  # scales the noise
    noisy: str = "actor"  # noise is added to the parameters under this name; "" for all
    # Structure of a PPO update; num_steps is a multiple of their product.
    num_minibatches: int = 1  # optimizer steps in an epoch
    num_epochs: int = 1  # epochs in an update of the policy

    def __post_init__(self):
        for name in ("hidden", "width", "num_minibatches", "num_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class State(NamedTuple):
    step: jax.Array  # () int32
    momentum: tuple[Params, ...]  # one tree per decay, float32
    hidden: Params  # hidden state of the GRU, (*shape, hidden) for each tensor


def build(config: Config = Config()) -> Learned:
    """Returns the OPEN optimizer.

    For each coordinate, with the inputs f of ``_inputs``, h the state of its GRU and z
    standard normal,

        h <- gru(f, h),   (d, a, e) = mlp(h)
        u = step_multiplier d exp(exp_multiplier a) + noise_multiplier e z
        p <- p - (u - mean of u over all parameters)

    ``update`` takes, all optional,

      activations: (num_units,) means of |output| over the batch, one array for each layer, in a
        tree like the parameters with that array in place of each layer, e.g.
        ``{"actor": {"Dense_0": a}}`` for ``{"actor": {"Dense_0": {"kernel": ..., "bias": ...}}}``.
        Without it all neurons count as equally active.
      key: random key that z is drawn from; there is no noise without it, or where no parameter is
        under ``noisy``.
      noise: z itself, a tree like the parameters, instead of ``key``.

    A layer is the tensors whose paths differ only in the last name, as in ``{"Dense_0": {"kernel":
    ..., "bias": ...}}``; layers of one network are ordered by name, numbers by value. In a flat dict
    with numbered names, ``{"w0": ..., "b0": ..., "w1": ..., "b1": ...}``, a layer is the tensors with
    the same number, and ``activations`` has the layer's array in place of each of them.

    The published optimizer is used with gradients clipped to norm 0.5, actor and critic
    separately. Memory: six float32 copies of the parameters and one for each unit of the GRU. It
    does not read ``value``. Beyond ``num_steps`` the fraction of training done grows on above 1. An
    entry of a gradient that is NaN, infinite or larger than 1e14 counts as zero.

    Raises:
      ValueError: from ``bind``, without ``num_steps``; from ``update``, if the
        activations do not fit the parameters.
    """

    def init(key: Key) -> Theta:
        k_gru, k_mlp = jax.random.split(key)
        norm = {f"{name}{i}": fill(config.width) for i in range(2) for name, fill in INITIAL_NORM.items()}
        weights = mlp.init(k_mlp, (config.hidden, config.width, config.width, 3))
        return {"gru": gru.init(k_gru, NUM_INPUTS, config.hidden), "mlp": weights | norm}

    def bind(theta: Theta, num_steps: jax.Array | int | None = None) -> optax.GradientTransformationExtraArgs:
        if num_steps is None:
            raise ValueError("open is told how far training is and needs its length: pass num_steps=")

        def init_state(params: Params) -> State:
            params = Stacking(params).zeros()
            return State(
                jnp.zeros((), jnp.int32),
                tuple(jax.tree.map(jnp.zeros_like, params) for _ in MOMENTUM_DECAYS),
                jax.tree.map(lambda p: jnp.zeros((*p.shape, config.hidden)), params),
            )

        def update(
            grads: Params,
            state: State,
            params: Params,
            value: jax.Array | None,
            activations: PyTree | None,
            key: Key | None,
            noise: PyTree | None,
        ) -> tuple[Params, State]:
            del value
            stacking = Stacking(params)
            of_user = (_depths(params), _dormancies(activations, params))  # by the names of tensors
            depths, dormancies = map(stacking.stack, of_user)
            noise = _noise(key, noise, params, stacking, config)
            params, grads = stacking.stack(params), stacking.stack(grads)
            momentum = tuple(
                jax.tree.map(functools.partial(ema, b), old, grads)
                for b, old in zip(MOMENTUM_DECAYS, state.momentum, strict=True)
            )
            training_progress, epoch_progress = _progress(state.step, num_steps, config)

            def update_tensor(p, g, m, depth, dormancy, z, scales, hidden):
                unscaled = (training_progress, depth, epoch_progress, dormancy)
                inputs = _inputs(_channels(p, g, m), scales, unscaled)
                hidden = gru.step(theta["gru"], inputs, hidden)
                d, a, e = jnp.moveaxis(_mlp(theta["mlp"], hidden), -1, 0)
                u = config.step_multiplier * d * jnp.exp(config.exp_multiplier * a)
                return u + config.noise_multiplier * e * z, (hidden,)

            of_tensors = by_tensor((params, grads, momentum), params)
            scales = jax.tree.structure(params).unflatten([bare(each(_scales, x)) for x in of_tensors])
            by_decay = jax.tree.map(lambda *m: m, *momentum)
            inputs = (params, grads, by_decay, depths, dormancies, noise, scales)
            u, (hidden,) = coordinates.map_coordinates(update_tensor, inputs, (state.hidden,))
            total = sum(map(jnp.sum, jax.tree.leaves(u)))
            mean = total / max(1, sum(x.size for x in jax.tree.leaves(u)))
            return stacking.unstack(jax.tree.map(lambda x: mean - x, u)), State(state.step + 1, momentum, hidden)

        return rule.transformation(init_state, update, name="open", reads=("activations", "key", "noise"))

    return Learned(init, bind)


def _channels(p: jax.Array, g: jax.Array, momentum: tuple[jax.Array, ...]) -> list[jax.Array]:
    """p, the signs of the momenta, their log magnitudes, the sign and log magnitude of the gradient."""
    return [p, *map(jnp.sign, momentum), *map(_log_magnitude, momentum), jnp.sign(g), _log_magnitude(g)]


def _log_magnitude(x: jax.Array) -> jax.Array:
    return jnp.log(jnp.abs(x) + LOG_EPS)


def _scales(tensor: tuple[jax.Array, jax.Array, tuple[jax.Array, ...]]) -> list[jax.Array]:
    """For each channel ``rsqrt(1e-5 + mean of its square over the tensor)``, of parameter, gradient and momenta."""

    def squares(tile: tuple) -> list[jax.Array]:
        return [f * f for f in _channels(*tile)]

    return [jax.lax.rsqrt(1e-5 + mean) for mean in tiling.means(squares, tensor, tensor[0].shape)]


def _inputs(channels: list[jax.Array], scales: list[jax.Array], unscaled: tuple) -> jax.Array:
    """The GRU's input, (*shape, 19): the channels multiplied by their scales, then ``unscaled`` as it is."""
    scaled = [f * scale for f, scale in zip(channels, scales, strict=True)]
    return jnp.stack([*scaled, *(jnp.broadcast_to(x, scaled[0].shape) for x in unscaled)], axis=-1)


def _mlp(weights: Theta, x: jax.Array) -> jax.Array:
    """Two hidden layers, each normalized before its ReLU; (..., 3)."""
    for i in range(2):
        x = x @ weights[f"w{i}"] + weights[f"b{i}"]
        x = (x - jnp.mean(x, -1, keepdims=True)) * jax.lax.rsqrt(jnp.var(x, -1, keepdims=True) + LAYER_NORM_EPS)
        x = jax.nn.relu(x * weights[f"scale{i}"] + weights[f"shift{i}"])
    return x @ weights["w2"] + weights["b2"]


def _progress(step: jax.Array, num_steps: jax.Array | int, config: Config) -> tuple[jax.Array, jax.Array]:
    """() fractions of all policy updates, and of the epochs of the current one, that are done."""
    per_update = config.num_minibatches * config.num_epochs
    update, epoch = step // per_update, step // config.num_minibatches % config.num_epochs
    last = jnp.asarray(num_steps) // per_update - 1
    return update / jnp.maximum(last, 1), epoch / max(config.num_epochs - 1, 1)


def _depths(params: Params) -> PyTree:
    """For each tensor the relative depth of its layer: 0 for the first of its network, 1 for the last."""
    paths = [parameters.names(path) for path, _ in jax.tree.leaves_with_path(params)]
    numbers: dict[tuple, set[int]] = collections.defaultdict(set)  # those in the names of a dict's tensors
    for *parent, name in filter(None, paths):
        if number := NUMBERED.search(name):
            numbers[tuple(parent)].add(int(number[1]))
    siblings: dict[tuple, list] = collections.defaultdict(list)
    for layer in sorted({path[:-1] for path in paths}, key=_natural):
        siblings[layer[:-1]].append(layer)

    def depth(path: tuple[str, ...]) -> float:
        layer = path[:-1]
        number = NUMBERED.search(path[-1]) if path else None
        if number and len(numbers[layer]) > 1:
            return _relative_position(int(number[1]), sorted(numbers[layer]))
        return _relative_position(layer, siblings[layer[:-1]])

    return jax.tree.structure(params).unflatten([depth(path) for path in paths])


def _relative_position(layer: Any, layers: list) -> float:
    """0 for the first of ``layers``, 1 for the last."""
    return layers.index(layer) / max(len(layers) - 1, 1)


def _natural(layer: tuple[str, ...]) -> list:
    """A sort key with numbers compared as numbers: Dense_2 comes before Dense_10."""
    return [[int(text) if text.isdigit() else text for text in re.split(r"(\d+)", name)] for name in layer]


def _dormancies(activations: PyTree | None, params: Params) -> PyTree:
    """For each tensor the activations of its units relative to the mean of their layer, (num_units,)."""
    if activations is None:
        return jax.tree.map(lambda p: 1.0, params)

    def relative(layer: jax.Array) -> jax.Array:
        a = jnp.asarray(layer, jnp.float32) + ACTIVATION_EPS
        return a / jnp.mean(a)

    try:
        dormancies = jax.tree.broadcast(jax.tree.map(relative, activations), params)
    except ValueError as error:
        raise ValueError(
            f"open: activations are a tree like the parameters, one array for each layer: {error}"
        ) from error
    for (path, p), d in zip(jax.tree.leaves_with_path(params), jax.tree.leaves(dormancies), strict=True):
        if d.shape != p.shape[-1:]:
            name = jax.tree_util.keystr(path)
            raise ValueError(f"open: activations of the layer of params{name} {p.shape} have shape {d.shape}")
    return dormancies


def _noise(key: Key | None, noise: PyTree | None, params: Params, stacking: Stacking, config: Config) -> PyTree:
    """The noise of each tensor, as ``stacking`` has it; zero for those that are not to get any."""
    tensors = jax.tree.leaves_with_path(params)
    gets_noise = [not config.noisy or config.noisy in parameters.names(path) for path, _ in tensors]
    if noise is not None and not any(gets_noise):  # a key comes from every task, whatever its parameters are called
        names = ", ".join(sorted({parameters.names(path)[0] for path, _ in tensors if path}))
        raise ValueError(
            f"open: no parameter is under {config.noisy!r} to be given noise (there are {names}): set noisy"
        )
    given = [] if noise is None else jax.tree.leaves(stacking.stack(noise))
    noises = []
    for leaf, members in enumerate(stacking.members):
        is_noisy, shape = np.array(gets_noise)[members], tensors[stacking.first_members[leaf]][1].shape
        if not is_noisy.any() or (noise is None and key is None):
            noises.append(jnp.zeros((*np.shape(members), *[1] * len(shape))))
            continue
        z = given[leaf] if key is None or noise is not None else _draw(key, np.array(members), shape)
        noises.append(z if is_noisy.all() else z * is_noisy.reshape(-1, *[1] * len(shape)))
    return jax.tree.structure(stacking.zeros()).unflatten(noises)


def _draw(key: Key, members: np.ndarray, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal noise of tensors, given their indices."""

    def draw_tensor(i: jax.Array | np.ndarray) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(key, i), shape)

    return jax.vmap(draw_tensor)(members) if members.ndim else draw_tensor(members)
