"""VeLO, as saved by HyperV2 of google/learned_optimization or by PyLO.

Source: Metz et al., "VeLO: training versatile learned optimizers by scaling up",
arXiv:2211.09760; research/general_lopt/hyper_v2.py.
"""

from pathlib import Path
from typing import Any

from metaopt.errors import UserError
from metaopt.importers import files, gin_file, haiku, velo_pylo
from metaopt.importers.arrays import Arrays, check, size
from metaopt.importers.imported import ImportedWeights
from metaopt.importers.questions import Question, require

NUM_INPUTS = 30  # inputs of the LSTM for each tensor
FLAGS = {"bugged_loss_features": "use_bugged_loss_features", "bugged_lstm_state": "use_bugged_next_lstm_state"}
QUESTIONS = {
    ours: Question(f"HyperV2's {theirs}: false for the released VeLO, true for its oldest snapshots", False)
    for ours, theirs in FLAGS.items()
} | {"relative": Question("true for VeLO, false for muVeLO; the option gin, its config.gin, says all of these", True)}
# Defaults of HyperV2 that our velo has no setting for: a config.gin may not set another value.
FIXED = {
    "ff_hidden_size": 4,
    "ff_hidden_layers": 2,
    "initial_momentum_decays": (0.9, 0.99, 0.999),
    "initial_rms_decays": (0.999,),
    "initial_adafactor_decays": (0.9, 0.99, 0.999),
    "mix_layers": True,
    "adafactor_accumulator": True,
    "with_validation_feature_dim": False,
    "precondition_output": False,
    "rnn_state_decay": 0.0,
    "constant_loss": False,
    "clip_param_scale_amount": None,
}
# Defaults of HyperV2 that our velo has a setting for, see OURS.
DEFAULTS = {
    "use_bugged_loss_features": True,
    "use_bugged_next_lstm_state": False,
    "param_scale_mult": True,
    "exp_mult": 1e-3,
    "step_mult": 1e-3,
}
# Our name of each setting -> HyperV2's.
OURS = FLAGS | {"relative": "param_scale_mult", "exp_multiplier": "exp_mult", "step_multiplier": "step_mult"}


def recognizes(arrays: Arrays) -> bool:
    """Whether there is a recurrent network under its haiku names, or either of PyLO's two files."""
    is_haiku = any(path.startswith((haiku.SCHEDULER, "lstm_init_state/")) for path in arrays)
    return is_haiku or velo_pylo.is_recurrent(arrays) or velo_pylo.is_bank(arrays)


def convert(
    arrays: Arrays,
    *,
    bugged_loss_features: bool | None = None,
    bugged_lstm_state: bool | None = None,
    relative: bool | None = None,
    gin: str | Path | None = None,
    mlp: str | Path | None = None,
) -> ImportedWeights:
    """Converts to theta of the family velo.

    Args:
      arrays: entries of the file.
      bugged_loss_features: whether it was meta-trained with HyperV2's use_bugged_loss_features.
      bugged_lstm_state: whether it was meta-trained with use_bugged_next_lstm_state.
      relative: True for VeLO, False for muVeLO, whose file looks the same.
      gin: path of the config.gin that is released with a file, instead of these three.
      mlp: path of PyLO's VeLO_MLP, if the file is VeLO_RNN.

    Raises:
      UserError: if an option must be given or left out, or an entry does not fit.
    """
    arrays = _with_bank(arrays, mlp)
    hidden = size(arrays, "rnn_params/step_size/w", 0)
    bank = size(arrays, "rnn_params/rnn_to_controls/b", 0)
    shapes = haiku.scheduler_shapes(NUM_INPUTS, hidden) | haiku.dense_shapes({"rnn_to_controls": (hidden, bank)})
    check(arrays, shapes | haiku.network_shapes((bank,), FIXED["ff_hidden_size"]))
    config = {"hidden": hidden, "bank": bank}
    if gin is not None:
        config |= _settings_from_gin(gin, {"lstm_hidden_size": hidden, "param_inits": bank})
    given = {"bugged_loss_features": bugged_loss_features, "bugged_lstm_state": bugged_lstm_state, "relative": relative}
    config |= {flag: value for flag, value in given.items() if value is not None}
    require(config, QUESTIONS)
    theta = {"bank": haiku.network(arrays, 2), **haiku.scheduler(arrays)}
    return ImportedWeights("velo", config, theta | {"controls": haiku.dense(arrays, "rnn_to_controls")})


def _with_bank(arrays: Arrays, mlp: str | Path | None) -> Arrays:
    """The arrays under their haiku names, including those of PyLO's other file."""
    if not (velo_pylo.is_recurrent(arrays) or velo_pylo.is_bank(arrays)):
        if mlp is not None:
            raise UserError("it holds the bank of networks too, which PyLO's does not: leave the option mlp out")
        return arrays
    if velo_pylo.is_bank(arrays) or mlp is None:
        raise UserError("PyLO keeps VeLO in two files: import VeLO_RNN and pass VeLO_MLP as the option mlp")
    recurrent, other = velo_pylo.recurrent(arrays, NUM_INPUTS), files.read(Path(mlp)).arrays
    try:
        return recurrent | velo_pylo.bank(other, FIXED["ff_hidden_size"])
    except UserError as error:
        raise UserError(f"of {mlp}, {error}") from error


def _settings_from_gin(path: str | Path, sizes: dict[str, int]) -> dict[str, Any]:
    """The settings of HyperV2 in a config.gin, under our names; ``sizes`` are those of the weights."""
    settings = gin_file.read(path, "HyperV2")
    for name, value in settings.items():
        if name in sizes and value != sizes[name]:
            raise UserError(f"{path} belongs to other weights: {name} is {value} there and {sizes[name]} here")
        if name not in {**FIXED, **DEFAULTS, **sizes} or (name in FIXED and value != FIXED[name]):
            raise UserError(f"{path} sets {name} = {value}, which velo does not do")
    chosen = {**DEFAULTS, **settings}
    return {ours: chosen[theirs] for ours, theirs in OURS.items()}
