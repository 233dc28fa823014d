"""The command ``metaopt``."""

import argparse
import os
import sys
import traceback

import jax

from meta_train.cli.parser import build_parser
from metaopt.errors import UserError
from tasks import data


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit code. User errors are one line on stderr and 2."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # a resumed run should not compile again
        jax.config.update("jax_compilation_cache_dir", str(data.cache_dir() / "jax"))
    arguments = parse(argv)
    try:
        return arguments.run(arguments) or 0
    except UserError as error:
        message = " ".join(str(error).splitlines())  # of a user's own file it may have several
        print(f"metaopt: {message}", file=sys.stderr)
        return 2
    except Exception:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # the usual way out waits for all processes, also for one that is lost


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = build_parser()
    argv = sys.argv[1:] if argv is None else argv
    end = argv.index("--") if "--" in argv else len(argv)
    arguments, rest = parser.parse_known_args(argv[:end])
    # argparse takes no more positionals after an option: "train RECIPE --dir D name=value".
    settings = [word for word in rest if "=" in word and not word.startswith("-")]
    if rest and (rest != settings or "settings" not in arguments):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if settings:
        arguments.settings += settings
    if "sbatch" in arguments:
        arguments.sbatch = argv[end + 1 :]
    elif argv[end:]:
        parser.error("only submit takes options, those of sbatch, behind --")
    return arguments
