"""The command ``metaopt``."""

import argparse
import os
import sys
from pathlib import Path

from metaopt.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Runs one command. User errors are one line on stderr and exit code 2."""
    # Imported here, after the compilation cache is set up: JAX reads it once.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "metaopt" / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
    parser = build_parser()
    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except UserError as error:
        print(f"metaopt: {error}", file=sys.stderr)
        return 2
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="metaopt", description="Meta-train, load and evaluate learned optimizers.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="meta-train a recipe, or resume a run")
    train.add_argument("recipe", nargs="?", help="name of a recipe")
    train.add_argument("settings", nargs="*", metavar="name=value", help="changes to the recipe")
    train.add_argument("--dir", type=Path, help="run directory (default: runs/RECIPE)")
    train.add_argument("--resume", type=Path, metavar="DIR", help="continue the run in DIR")
    train.add_argument("--devices", type=int, help="CPU devices to make (default: one)")
    train.set_defaults(run=run_train)
    return parser


def run_train(arguments) -> None:
    if arguments.devices:
        import jax

        jax.config.update("jax_num_cpu_devices", arguments.devices)
    from meta_train import recipe as recipes
    from meta_train import run

    chosen = recipes.override(recipes.find(arguments.recipe), arguments.settings) if arguments.recipe else None
    if arguments.resume:
        run.resume(arguments.resume, chosen)
    elif chosen is None:
        raise UserError(f"name a recipe ({', '.join(recipes.names())}) or a run with --resume DIR")
    else:
        run.start(chosen, arguments.dir or Path("runs") / arguments.recipe)


if __name__ == "__main__":
    sys.exit(main())
