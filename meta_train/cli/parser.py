"""The arguments of every command of ``metaopt``."""

import argparse
from pathlib import Path
from typing import NoReturn

from meta_train.cli.commands import (
    run_coord_check,
    run_estimator_study,
    run_evaluate,
    run_export,
    run_import,
    run_info,
    run_list,
    run_merge,
    run_recipes,
    run_report,
    run_schedule_study,
    run_seal,
    run_submit_evaluate,
    run_submit_sweep,
    run_submit_train,
    run_train,
)
from meta_train.run import mirrors


class Parser(argparse.ArgumentParser):
    """Says in one line what it does not understand; its commands are such parsers too."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"metaopt: {message}; see {self.prog} --help\n")


def build_parser() -> Parser:
    parser = Parser(prog="metaopt", description="Meta-train, load and evaluate learned optimizers.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="meta-train a recipe, or resume a run")
    train.add_argument("recipe", nargs="?", help="name of a recipe, or path/to/file.py")
    train.add_argument("settings", nargs="*", metavar="name=value", help="changes to the recipe")
    train.add_argument("--dir", type=Path, help="run directory (default: runs/RECIPE)")
    train.add_argument("--resume", type=Path, metavar="DIR", help="continue the run in DIR")
    train.add_argument(
        "--devices", type=int, metavar="N", help="CPU devices to make (default: one per core, if the samples divide)"
    )
    add_log(train)
    train.set_defaults(run=run_train)

    export = commands.add_parser("export", help="turn a run into a checkpoint")
    export.add_argument("dir", type=Path, metavar="RUN", help="run directory")
    export.add_argument("name", help="name of the checkpoint; goes to METAOPT_CHECKPOINTS where set, else checkpoints/")
    export.add_argument("--summary", default="", help="one line for the list of checkpoints")
    export.add_argument("--licence", help="licence of the weights (default: that of the weights the run began from)")
    export.add_argument("--step", type=int, help="a saved outer step (default: the newest)")
    export.add_argument("--overwrite", action="store_true", help="replace a checkpoint of this name")
    export.set_defaults(run=run_export)

    importing = commands.add_parser("import", help="turn weights that another project released into a checkpoint")
    importing.add_argument("file", type=Path, help="msgpack, pickle, safetensors, .pt, .npy or .npz; read, never run")
    importing.add_argument("--as", dest="name", required=True, help="name of the checkpoint, as for export")
    importing.add_argument("--licence", help="licence of the weights")
    importing.add_argument("--overwrite", action="store_true", help="replace a checkpoint of this name")
    choice = importing.add_argument_group("what a file may not say").add_argument
    choice("--decays", help="small_fc whose file has no decays: mulo (btherien/mulo) or initial (ELO)")
    choice(
        "--step-multiplier", type=float, help="small_fc: 0.01 for muLO, 0.001 for its baseline, AdafacMLPLOpt and ELO"
    )
    choice("--variant", help="Celo2: celo2, base or elo")
    choice("--learning-rate", type=float, help="Celo2: the step size of your choice, 0.001 in meta-training")
    choice("--weight-decay", type=float, help="Celo2 (default: 0.1 for elo, else 0)")
    choice("--bugged-loss-features", choices=("true", "false"), help="VeLO: false for the released one")
    choice("--bugged-lstm-state", choices=("true", "false"), help="VeLO: false for the released one")
    choice("--relative", choices=("true", "false"), help="VeLO: false for muVeLO, true for VeLO")
    choice("--gin", type=Path, metavar="FILE", help="VeLO: its config.gin, in the place of these three")
    choice("--mlp", type=Path, metavar="FILE", help="VeLO from PyLO: VeLO_MLP, where FILE is VeLO_RNN")
    choice("--num-minibatches", type=int, help="OPEN: minibatches in an epoch of the PPO that it will train")
    choice("--num-epochs", type=int, help="OPEN: epochs in an update of that PPO")
    importing.set_defaults(run=run_import)

    recipes = commands.add_parser("recipes", help="list the recipes: names, purpose, cost")
    recipes.set_defaults(run=run_recipes)

    listing = commands.add_parser("list", help="list the checkpoints on this machine")
    listing.add_argument("--markdown", action="store_true", help="as checkpoints/README.md")
    listing.set_defaults(run=run_list)

    seal = commands.add_parser("seal", help="seal a manifest that you edited by hand, or that is of an older format")
    seal.add_argument("name", help="checkpoint name or folder")
    seal.set_defaults(run=run_seal)

    info = commands.add_parser("info", help="print what a checkpoint is")
    info.add_argument("name", help="checkpoint name or folder")
    info.add_argument("--family", metavar="REFERENCE", help="family of a checkpoint whose family metaopt does not have")
    info.set_defaults(run=run_info)

    evaluate = commands.add_parser("evaluate", help="compare checkpoints and runs with tuned baselines")
    add_evaluation(evaluate)
    evaluate.add_argument("--shard", type=int, metavar="I", help="compute this shard alone; metaopt merge joins them")
    evaluate.add_argument("--record", action="store_true", help="write the results into the checkpoints' manifests")
    evaluate.set_defaults(run=run_evaluate)

    merge = commands.add_parser("merge", help="join the shards of an evaluation")
    merge.add_argument("dir", type=Path, help="the --out of its shards")
    merge.add_argument("--record", action="store_true", help="write the results into the checkpoints' manifests")
    merge.set_defaults(run=run_merge)

    submit = commands.add_parser("submit", help="hand work to SLURM")
    add_submissions(submit.add_subparsers(required=True, metavar="WORK"))

    report = commands.add_parser("report", help="draw a report again from its results.jsonl")
    report.add_argument("dir", type=Path)
    report.set_defaults(run=run_report)

    schedule = commands.add_parser("schedule-study", help="learned learning-rate schedules beside the best of a grid")
    schedule.add_argument(
        "dirs", type=Path, nargs="+", metavar="RUN", help="run directories of mnist-schedule or the like"
    )
    schedule.add_argument("--seeds", type=int, default=20, help="reported runs of each")
    schedule.add_argument(
        "--out", type=Path, default=Path("reports/schedule-study"), help="folder (default: %(default)s)"
    )
    schedule.set_defaults(run=run_schedule_study)

    study = commands.add_parser("estimator-study", help="measure the estimators side by side, minutes on a CPU")
    study.add_argument("--out", type=Path, default=Path("reports/estimator-study"), help="folder of json and picture")
    study.set_defaults(run=run_estimator_study)

    check = commands.add_parser("coord-check", help="how far layers move at every width, with muP and without")
    check.add_argument("--optimizer", default="adam", help="adam, or a checkpoint (default: %(default)s)")
    check.add_argument("--network", default="mlp", help="mlp or transformer (default: %(default)s)")
    check.add_argument("--out", type=Path, default=Path("reports/coord-check"), help="folder of json and picture")
    check.set_defaults(run=run_coord_check)
    return parser


def add_log(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--log",
        choices=mirrors.KINDS,
        help="mirror the metrics; a resumed run keeps the mirrors it has (default: none)",
    )


def add_evaluation(parser: argparse.ArgumentParser) -> None:
    """What an evaluation compares, and where it goes: see ``commands.evaluation``."""
    parser.add_argument("names", nargs="+", metavar="NAME", help="checkpoints and run directories, by name or folder")
    parser.add_argument("--suite", default="heldout-small", help="name, or path/to/file.py:name (default: %(default)s)")
    parser.add_argument("--tasks", help="only these of the suite, comma separated")
    parser.add_argument(
        "--baselines",
        help='comma separated; the first is the reference (default: the first three of the kind; "" is none, and the '
        "first algorithm the reference)",
    )
    parser.add_argument(
        "--family",
        action="append",
        default=[],
        metavar="[NAME=]REFERENCE",
        help="family of a checkpoint whose family metaopt does not have; of all of them without NAME=",
    )
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=10, help="reported runs of each method on each problem")
    parser.add_argument("--draws", type=int, default=1, help="problems drawn from each task")
    parser.add_argument("--block", type=int, default=1, help="draws in a shard, for --shard (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder (default: reports/NAMES-SUITE)")


def add_submissions(works) -> None:
    """``metaopt submit ...``; what is behind -- goes to sbatch."""
    train = works.add_parser("train", help="a run, or a run to go on with")
    train.add_argument("recipe", nargs="?", help="name of a recipe, or path/to/file.py")
    train.add_argument("settings", nargs="*", metavar="name=value", help="changes to the recipe")
    train.add_argument("--dir", type=Path, help="run directory (default: runs/RECIPE)")
    train.add_argument("--resume", type=Path, metavar="DIR", help="continue the run in DIR")
    add_log(train)

    sweep = works.add_parser("sweep", help="recipes x overrides, a job array")
    sweep.add_argument(
        "settings", nargs="+", metavar="RECIPE ... name=value,value", help="recipes, and the values of settings"
    )
    sweep.add_argument("--dir", type=Path, required=True, help="folder of the run directories and of their table")

    evaluate = works.add_parser("evaluate", help="an evaluation in shards, a job array, and the job that joins them")
    add_evaluation(evaluate)

    for work, run in ((train, run_submit_train), (sweep, run_submit_sweep), (evaluate, run_submit_evaluate)):
        work.add_argument("--dry-run", action="store_true", help="print the sbatch commands, do nothing")
        work.set_defaults(run=run, sbatch=[])
    for array in (sweep, evaluate):
        array.add_argument("--at-once", type=int, metavar="N", help="how many run at the same time (default: all)")
