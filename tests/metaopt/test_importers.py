"""Weights of other projects: the same numbers under our names, and every ambiguity refused."""

import io
import json
import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from flax import linen, serialization

import metaopt
from metaopt import checkpoint, families, importers
from metaopt.errors import UserError
from metaopt.importers import files, released
from tasks import ImageMLP
from tests.golden import celo, per_parameter, velo
from tests.metaopt.foreign_files import FLAGS, SAMPLES, sample, torch_zip
from tests.released import RELEASED


def same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def write(path, content) -> str:
    path.write_bytes(content)
    return str(path)


def haiku_file(path, arrays, **changes) -> str:
    """A msgpack file of entries by path; a change of None removes one."""
    tree: dict = {}
    for name, array in (arrays | changes).items():
        *parents, last = name.split("/") if "rnn/" not in name else ["rnn_params", "rnn/linear", name[-1]]
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        if array is not None:
            branch[last] = array
    return write(path, serialization.msgpack_serialize(tree))


def entries(name: str) -> dict[str, np.ndarray]:
    return files.read(sample(name)).arrays


# Weights that are read.


def test_adafac_is_the_golden_optimizer(tmp_path):
    found = importers.read(sample("velo_adafac_h4.ckpt"), step_multiplier=1e-3)
    with np.load(sample("velo_adafac_mlp_lopt.npz")) as data:
        same(found.theta["factored_decays"], data["h4/theta/adafactor_decays"])
        same(found.theta["momentum_decays"], data["h4/theta/momentum_decays"])
        same(found.theta["network"], {n: data[f"h4/theta/nn|~|{n}"] for n in ("w0", "b0", "w1", "b1", "w2", "b2")})
        folder = importers.import_file(sample("velo_adafac_h4.ckpt"), tmp_path / "adafac", **ADAFAC)
        saved = checkpoint.read(folder)
        assert max(error for _, error in per_parameter.replay_scenarios(data, "h4", saved.learned, saved.theta)) <= 1


MULO = SAMPLES["mulo_theta_seeded.pickle"]
ADAFAC = SAMPLES["velo_adafac_h4.ckpt"]


def test_mulo_has_its_own_decays_and_step():
    found = importers.read(sample("mulo_theta_seeded.pickle"), step_multiplier=0.01)
    assert found.family == "small_fc"
    assert found.config == {"hidden": 32, "step_multiplier": 0.01, "exp_multiplier": 0.001}
    raw = pickle.loads(sample("mulo_theta_seeded.pickle").read_bytes())  # our own file
    same(found.theta["network"], raw["nn"]["~"])
    same([found.theta[f"{n}_decays"] for n in ("momentum", "rms")], [raw["momentum_decays"], raw["rms_decays"]])
    same(found.theta["factored_decays"], raw["adafactor_decays"])
    assert importers.read(sample("mulo_theta_seeded.pickle"), step_multiplier=1e-3).config["step_multiplier"] == 1e-3


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray, np.asfortranarray])
def test_pickles_of_every_protocol(tmp_path, protocol, kind):
    raw = pickle.loads(sample("mulo_theta_seeded.pickle").read_bytes())
    path = write(tmp_path / "x", pickle.dumps(jax.tree.map(kind, raw), protocol))
    same(importers.read(path, **MULO).theta, importers.read(sample("mulo_theta_seeded.pickle"), **MULO).theta)


def test_pylo_keeps_the_same_weights_transposed_and_the_decays_elsewhere():
    theirs = importers.read(sample("mulo_theta_seeded.pickle"), **MULO).theta["network"]
    mulo = importers.read(sample("metamlp_seeded.safetensors"), decays="mulo")
    elo = importers.read(sample("metamlp_seeded.safetensors"), decays="initial", step_multiplier=1e-3)
    same(mulo.theta["network"], theirs)
    same(elo.theta["network"], theirs)
    assert mulo.config["step_multiplier"] == 0.01 and elo.config["step_multiplier"] == 0.001
    # The decays that the offsets stand for, from the muLO specification.
    effective = lambda name, initial: 1 - (1 - np.array(initial)) * np.exp(10 * mulo.theta[name])
    np.testing.assert_allclose(effective("momentum_decays", [0.9, 0.99, 0.999]), [0.5420, 0.9584, 0.9980], atol=5e-5)
    np.testing.assert_allclose(effective("rms_decays", [0.999]), [0.99889], atol=5e-6)
    np.testing.assert_allclose(effective("factored_decays", [0.9, 0.99, 0.999]), [0.3562, 0.99663, 0.99946], atol=5e-5)
    assert all(not np.any(elo.theta[f"{name}_decays"]) for name in ("momentum", "rms", "factored"))


def test_elo_of_jax_has_no_decays_either(tmp_path):
    path = haiku_file(tmp_path / "x", {p: a for p, a in entries("velo_adafac_h4.ckpt").items() if "decays" not in p})
    found = importers.read(path, decays="initial", step_multiplier=1e-3)
    same(found.theta["network"], importers.read(sample("velo_adafac_h4.ckpt"), **ADAFAC).theta["network"])
    with pytest.raises(UserError, match="pass the option decays"):
        importers.read(path)


def test_first_layers_are_joined_by_number_not_by_name(tmp_path):
    arrays = {
        path: np.full_like(array, int(path.rpartition("__")[2])) if "__" in path else array
        for path, array in entries("celo2_theta_seeded.state").items()
    }
    found = importers.read(haiku_file(tmp_path / "x", arrays), variant="celo2", learning_rate=1e-3)
    widths = [1, 1, 1, 3, 1, 3, 1, 3, 1, 3, 3, 3, 3, 3]
    np.testing.assert_array_equal(found.theta["network"]["w0"][:, 5], np.repeat(np.arange(14), widths))


def test_celo2_of_jax_and_of_pylo_are_one():
    ours = importers.read(sample("celo2_theta_seeded.state"), variant="base", learning_rate=1e-3)
    theirs = importers.read(sample("celo2mlp_seeded.safetensors"), variant="base", learning_rate=1e-3)
    same(ours.theta, theirs.theta)
    raw = entries("celo2_theta_seeded.state")
    same(ours.theta["network"]["w2"], raw["ff_mod_stack/~/w2"][:, :1])  # the other outputs are dead
    common = {"hidden": 8, "learning_rate": 1e-3}
    assert ours.config == common | {"orthogonalize": False, "vectors": "learned"}
    elo = importers.read(sample("celo2mlp_seeded.safetensors"), variant="elo", learning_rate=1e-3)
    assert elo.config == common | {"orthogonalize": True, "vectors": "adamw", "weight_decay": 0.1}
    chosen = importers.read(sample("celo2_theta_seeded.state"), variant="elo", learning_rate=0.02, weight_decay=0.0)
    assert chosen.config == elo.config | {"learning_rate": 0.02, "weight_decay": 0.0}


def test_celo_and_what_it_drops(tmp_path):
    raw, found = entries("celo_theta_seeded.state"), importers.read(sample("celo_theta_seeded.state"))
    assert (found.family, found.config) == ("celo", {"rule": "mlp", "hidden": 64})
    same(found.theta["network"]["w1"], raw["ff_mod_stack/~/w1"][0])
    same(found.theta["network"]["b2"], raw["ff_mod_stack/~/b2"][0, :2])
    scheduler = found.theta["scheduler"]
    same(scheduler["pooled"]["w"], raw["rnn_params/linear_1/w"])
    same(scheduler["direct"]["b"], raw["rnn_params/linear_2/b"])
    same(scheduler["initial"], {name: raw[f"lstm_init_state/{name}"] for name in ("hidden", "cell")})
    assert sum(x.size for x in jax.tree.leaves(found.theta)) == 37_089 - 5 - 65 - 19 * 64
    only_scheduler = {p: a for p, a in raw.items() if "ff_mod_stack" not in p and "controls" not in p}
    adam = importers.read(haiku_file(tmp_path / "x", only_scheduler))
    assert adam.config["rule"] == "adam" and set(adam.theta) == {"scheduler"}
    same(adam.theta["scheduler"], scheduler)


def test_velo_and_its_flags():
    raw, found = entries("velo_hyper_v2_fixed.ckpt"), importers.read(sample("velo_hyper_v2_fixed.ckpt"), **FLAGS)
    assert (found.family, found.config) == ("velo", {"hidden": 16, "bank": 8, **FLAGS})
    same(found.theta["bank"]["w0"][:, 3:6], raw["ff_mod_stack/~/w0__3"])
    with np.load(sample("velo_hyper_v2.npz")) as data:  # whose replay is in tests/golden
        same(found.theta, velo.imported(data, "fixed").theta)


def test_velo_takes_its_flags_from_gin(tmp_path):
    text = """# written by gin
HyperV2.lstm_hidden_size = 16
HyperV2.param_inits = \\
    8
HyperV2.use_bugged_loss_features = False  # the fixed ones
run_train.lopt = @HyperV2()
"""
    path = tmp_path / "config.gin"
    read = lambda content: path.write_text(content) and importers.read(sample("velo_hyper_v2_fixed.ckpt"), gin=path)
    rest = {"exp_multiplier": 1e-3, "step_multiplier": 1e-3}
    assert read(text).config == {"hidden": 16, "bank": 8, **FLAGS, **rest}
    assert read(text + "HyperV2.param_scale_mult = False").config["relative"] is False  # muVeLO
    silent = text.replace("HyperV2.use_bugged", "other.use_bugged")
    assert read(silent).config["bugged_loss_features"] is True  # the default of the class
    for change, message in [
        (("= 16", "= 512"), "to other weights: lstm_hidden_size is 512 there and 16 here"),
        (("# written", "HyperV2.mix_layers = False #"), "sets mix_layers = False, which velo does not do"),
        (("= 16", "= open('x')"), "HyperV2.lstm_hidden_size is not a number"),
    ]:
        with pytest.raises(UserError, match=message):
            read(text.replace(*change))


def test_records_around_velo(tmp_path):
    """A tuple (theta, '', 0), and named tuples as flax once wrote them."""
    plain = importers.read(sample("velo_hyper_v2_fixed.ckpt"), **FLAGS).theta
    tree = serialization.msgpack_restore(sample("velo_hyper_v2_fixed.ckpt").read_bytes())["params"]
    state = tree["lstm_init_state"]
    fields = {"0": "hidden", "1": "cell"}
    old = {"name": "LSTMState", "fields": fields, "values": {i: state[field] for i, field in fields.items()}}
    for record in (tree, {"0": tree, "1": "", "2": 0}, tree | {"lstm_init_state": old}):
        path = write(tmp_path / "x", serialization.msgpack_serialize(record))
        same(importers.read(path, **FLAGS).theta, plain)


def pylo_velo() -> tuple[dict, dict]:
    """The sample as PyLO's VeLO_RNN and VeLO_MLP."""
    raw = entries("velo_hyper_v2_fixed.ckpt")
    names = ["linear", "linear_1", "linear_2", "rnn/linear", "rnn_to_controls", "step_size"]
    theirs = ["mix_layer1", "mix_layer2", "final_mix_layer", "lstm.linear", "rnn_to_controls", "step_size"]
    rnn = {f"{t}.weight": np.ascontiguousarray(raw[f"rnn_params/{n}/w"].T) for n, t in zip(names, theirs, strict=True)}
    rnn |= {f"{t}.bias": raw[f"rnn_params/{n}/b"] for n, t in zip(names, theirs, strict=True)}
    rnn |= {f"lstm_init_state.{i}": raw[f"lstm_init_state/{name}"] for i, name in enumerate(("hidden", "cell"))}
    layer = lambda name: raw[f"ff_mod_stack/~/{name}"]
    first = np.concatenate([layer(f"w0__{i}") for i in range(14)], axis=1)
    mlp = {"input_weights_": first, "hidden_weights_.0": layer("w1"), "output_weights_": layer("w2")}
    mlp = {name: np.ascontiguousarray(array.swapaxes(1, 2)) for name, array in mlp.items()}
    mlp |= {"input_bias_": layer("b0"), "hidden_bias_.0": layer("b1"), "output_bias_": layer("b2")}
    return rnn, mlp | {name.replace("_.", ".").removesuffix("_"): array[0] for name, array in mlp.items()}


def test_pylo_keeps_velo_in_two_files(tmp_path):
    rnn, mlp = [
        write(tmp_path / name, safetensors.numpy.save(arrays))
        for name, arrays in zip(("rnn", "mlp"), pylo_velo(), strict=True)
    ]
    same(importers.read(rnn, mlp=mlp, **FLAGS), importers.read(sample("velo_hyper_v2_fixed.ckpt"), **FLAGS))
    with pytest.raises(UserError, match="rnn .velo weights.: of .*adafac.*, it lacks 'output_bias_'"):
        importers.read(rnn, mlp=sample("velo_adafac_h4.ckpt"), **FLAGS)
    for path, options in [(rnn, {}), (mlp, {}), (mlp, {"mlp": rnn})]:
        with pytest.raises(UserError, match="in two files: import VeLO_RNN and pass VeLO_MLP"):
            importers.read(path, **FLAGS, **options)


@pytest.mark.parametrize("length", [0x480, 0x588])  # begins as a pickle does, and as a msgpack map
def test_safetensors_are_told_from_what_they_begin_like(tmp_path, length):
    arrays = entries("metamlp_seeded.safetensors")
    padded = (safetensors.numpy.save(arrays, {"pad": "x" * n}) for n in range(length))
    data = next(data for data in padded if int.from_bytes(data[:8], "little") == length)
    assert data[0] in (0x80, 0x88)
    assert files.read(Path(write(tmp_path / "x", data))).container == "safetensors"


@pytest.mark.parametrize(
    "run, name, choice",
    [
        ("elo", "metamlp_seeded.safetensors", {"decays": "initial", "step_multiplier": 0.02}),
        ("elo_celo2", "celo2mlp_seeded.safetensors", {"variant": "elo", "learning_rate": 0.02}),
    ],
)
def test_elo_is_the_optimizer_of_pylo(run, name, choice):
    """Six steps against PyLO's, with what ELO puts around the rule."""
    found = importers.read(sample(name), **choice)
    decayed = "weight_decay" in found.config  # Celo2 decays by itself
    around = optax.add_decayed_weights(0.0 if decayed else -0.02 * 0.1)
    tx = families.build(found.family, **found.config).bind(found.theta)
    with np.load(sample("elo_main.npz")) as data:
        assert celo.replay_trajectory(data, run, optax.chain(optax.clip_by_global_norm(1.0), tx, around)) <= 1


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("name", ["metamlp_seeded.safetensors", "celo2mlp_seeded.safetensors"])
def test_torch_files_hold_the_same(tmp_path, monkeypatch, name, big_endian):
    arrays = {path: np.asfortranarray(array) for path, array in entries(name).items()}  # strides of their own
    path = write(tmp_path / "x", torch_zip(arrays, monkeypatch, big_endian))
    same(importers.read(path, **SAMPLES[name]), importers.read(sample(name), **SAMPLES[name]))


@pytest.mark.parametrize("hidden, width, num", [(8, 16, 1211), (16, 32, 3571)])
def test_open_is_the_flattened_tree_of_flax(tmp_path, hidden, width, num):
    norm = lambda: [linen.Dense(width), linen.LayerNorm(), linen.relu]
    mlp, gru = linen.Sequential([*norm(), *norm(), linen.Dense(3)]), linen.GRUCell(hidden)
    keys = jax.random.split(jax.random.key(0), 2)
    shapes = {
        "params": jax.eval_shape(mlp.init, keys[0], jnp.zeros(hidden)),
        "gru_params": jax.eval_shape(gru.init, keys[1], jnp.zeros((1, hidden)), jnp.zeros((1, 19))),
    }
    rng = np.random.default_rng(0)
    tree = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    vector = np.concatenate([x.ravel() for x in jax.tree.leaves(tree)])  # as ravel_pytree
    file = io.BytesIO()
    np.save(file, vector)
    found = importers.read(write(tmp_path / "x", file.getvalue()), num_minibatches=8, num_epochs=4)
    assert vector.size == num
    assert found.config == {"hidden": hidden, "width": width, "num_minibatches": 8, "num_epochs": 4}
    gates, layers = tree["gru_params"]["params"], tree["params"]["params"]
    join = lambda side, kind: np.concatenate([gates[side + gate][kind] for gate in "rzn"], -1)
    expected_gru = {"wi": join("i", "kernel"), "bi": join("i", "bias"), "wh": join("h", "kernel")}
    same(found.theta["gru"], expected_gru | {"bh": gates["hn"]["bias"]})
    dense = {}
    for i in range(3):
        dense |= {f"w{i}": layers[f"layers_{3 * i}"]["kernel"], f"b{i}": layers[f"layers_{3 * i}"]["bias"]}
    for i in range(2):
        norms = layers[f"layers_{3 * i + 1}"]
        dense |= {f"scale{i}": norms["scale"], f"shift{i}": norms["bias"]}
    same(found.theta["mlp"], dense)


# Files that are refused.


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("metamlp_seeded.safetensors", {}, 'pass the option decays, "mulo" for btherien/mulo or "initial" for ELO'),
        ("metamlp_seeded.safetensors", {"decays": "mul"}, "unknown choice of decays 'mul'; did you mean 'mulo'"),
        ("velo_adafac_h4.ckpt", {"decays": "mulo"}, "holds its own decays: leave the option decays out"),
        ("velo_adafac_h4.ckpt", {"variant": "elo"}, "unknown option 'variant' .known: decays, step_multiplier"),
        ("velo_hyper_v2_fixed.ckpt", {}, "pass the option bugged_loss_features, HyperV2's use_bugged_loss_features"),
        ("velo_hyper_v2_fixed.ckpt", {"bugged_loss_features": False}, "pass the option bugged_lstm_state"),
        ("velo_hyper_v2_fixed.ckpt", FLAGS | {"relative": None}, "pass the option relative, true for VeLO, false for"),
        ("velo_adafac_h4.ckpt", {}, "pass the option step_multiplier, 0.01 for muLO, 0.001 for its baseline"),
        ("metamlp_seeded.safetensors", {"decays": "initial"}, "pass the option step_multiplier"),
        ("celo2_theta_seeded.state", {"variant": "elo"}, "pass the option learning_rate, the step size of your choice"),
        ("mulo_theta_seeded.pickle", {}, "pass the option step_multiplier, 0.01 for muLO, 0.001 for its baseline"),
        ("celo2_theta_seeded.state", {}, "pass the option variant, one of celo2, base, elo"),
        ("celo2_theta_seeded.state", {"variant": "celo"}, "did you mean 'celo2'"),
    ],
)
def test_what_a_file_does_not_say_must_be_given(name, options, message):
    with pytest.raises(UserError, match=f"{name} .*{message}"):
        importers.read(sample(name), **options)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"nn/~/b1": None}, "it lacks 'nn/~/b1'"),
        ({"nn/~/w3": np.zeros((4, 2), np.float32)}, "holds 'nn/~/w3', unknown here"),
        ({"rms_decays": None, "nn/~/w9": np.zeros(1)}, "lacks 'rms_decays' and holds 'nn/~/w9'"),
        ({"nn/~/w1": np.zeros((4, 5), np.float32)}, r"'nn/~/w1' should be float32\[4, 4\], is float32\[4, 5\]"),
        ({"nn/~/w1": np.zeros((4, 4))}, r"should be float32\[4, 4\], is float64\[4, 4\]"),
        ({"nn/~/w1": np.full((4, 4), np.nan, np.float32)}, "'nn/~/w1' holds values that are not finite"),
        ({"nn/~/w1": "four by four"}, "'nn/~/w1' is not an array but of type str"),
        ({"nn/~/b0": np.zeros((), np.float32)}, "'nn/~/b0' should have 1 axes or more, has 0"),
    ],
)
def test_entries_that_do_not_fit_are_named(tmp_path, changes, message):
    path = haiku_file(tmp_path / "file", entries("velo_adafac_h4.ckpt"), **changes)
    with pytest.raises(UserError, match=f"file .small_fc weights.: .*{message}"):
        importers.read(path, **ADAFAC)


def test_files_of_something_else_are_refused(tmp_path):
    with pytest.raises(UserError, match="none of the files read here: numpy archive, torch zip, numpy, safetensors"):
        importers.read(write(tmp_path / "x", b"GIF89a"))
    with pytest.raises(UserError, match="holds weights of none of small_fc.*it has 'kernel'"):
        importers.read(haiku_file(tmp_path / "x", {"kernel": np.zeros(3, np.float32)}))
    with pytest.raises(UserError, match="cannot read .*absent: No such file"):
        importers.read(tmp_path / "absent")


# Checkpoints made from files.


def test_a_checkpoint_says_where_it_is_from(tmp_path):
    path = sample("metamlp_seeded.safetensors")
    folder = importers.import_file(path, tmp_path / "mine" / "mulo", licence="MIT", decays="mulo")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["licence"] == "MIT"
    source = {"file": path.name, "sha256": files.read(path).sha256, "format": "safetensors"}
    assert manifest["source"] == source | {"options": {"decays": "mulo"}}
    assert "meta_trained_on" not in manifest  # unknown is not none
    same(checkpoint.read(folder).theta, importers.read(path, decays="mulo").theta)
    tx, params = metaopt.load(folder), {"w": jnp.ones((4, 3))}
    updates, _ = tx.update({"w": jnp.full((4, 3), 0.1)}, tx.init(params), params)
    assert np.isfinite(updates["w"]).all() and np.abs(updates["w"]).max() > 0


PPO = {"num_minibatches": 8, "num_epochs": 4}
ONE_EPOCH = {"num_minibatches": 1, "num_epochs": 1}
needs_released = pytest.mark.skipif(not RELEASED.is_dir(), reason="no released weights here; see METAOPT_RELEASED")


@needs_released
@pytest.mark.parametrize(
    "name, family, num",
    [
        ("celo/theta.state", "celo", 35_803),
        ("open/multi_OPEN.npy", "open", 3571),
        ("open/gridworld_OPEN.npy", "open", 1211),
        ("disco/disco_103.npz", "disco", 754_778),
    ],
)
def test_released_files_are_read_and_known(name, family, num):
    found = importers.read(RELEASED / name, **PPO if family == "open" else {})
    assert found.family == family and sum(x.size for x in jax.tree.leaves(found.theta)) == num
    assert released.KNOWN[files.read(RELEASED / name).sha256]["meta_trained_on"]


@needs_released
@pytest.mark.parametrize("name, share", [("celo/theta.state", 0.05), ("open/multi_OPEN.npy", 0.4)])
def test_released_weights_train_a_classifier_of_digits(tmp_path, name, share):
    """At most this share of the loss is left after 200 steps; 0.01 and 0.15 were measured."""
    num_steps, task, key = 200, ImageMLP(), jax.random.key(1)
    options = ONE_EPOCH if "OPEN" in name else {}
    folder = importers.import_file(RELEASED / name, tmp_path / "x" / "released", **options)
    tx = metaopt.load(folder, num_steps=num_steps)
    sampled = task.sample(key)
    params = {"actor": task.init(sampled, key)}  # under the name where OPEN may add noise

    def step(carry, t):
        params, state = carry
        loss = lambda p: task.loss(sampled, p["actor"], jax.random.fold_in(key, t))
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), value

    _, losses = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), jnp.arange(num_steps)))(params)
    assert losses[-20:].mean() < share * losses[0]


@needs_released
def test_a_file_that_torch_wrote_is_read():
    """NiNo's, whose weights are of none of these families."""
    arrays = files.read(RELEASED / "nino" / "nino_mlp_h32.pt").arrays
    assert arrays["state_dict/layer_embed.weight"].shape == (15, 32)
    with pytest.raises(UserError, match="holds weights of none of"):
        importers.read(RELEASED / "nino" / "nino_mlp_h32.pt")


def test_an_import_overwrites_no_checkpoint(tmp_path):
    name = tmp_path / "velo" / "mine"
    importers.import_file(sample("velo_hyper_v2_fixed.ckpt"), name, **FLAGS)
    before = (name / "manifest.json").read_bytes()
    with pytest.raises(UserError, match="already: choose another name"):
        importers.import_file(sample("velo_adafac_h4.ckpt"), name, **ADAFAC)
    assert (name / "manifest.json").read_bytes() == before


def test_a_gin_value_that_is_no_literal_is_named(tmp_path):
    (tmp_path / "config.gin").write_text("HyperV2.param_inits = {[1]: 2}\n")
    with pytest.raises(UserError, match="HyperV2.param_inits is not a number"):
        importers.read(sample("velo_hyper_v2_fixed.ckpt"), gin=tmp_path / "config.gin")


def test_muvelo_is_velo_that_is_not_relative():
    found = importers.read(sample("velo_hyper_v2_fixed.ckpt"), **FLAGS | {"relative": False})
    assert found.config["relative"] is False
