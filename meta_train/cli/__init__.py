"""The command ``metaopt``.

Nothing that takes long is imported here: a Ctrl-C while JAX is being imported ends in one line too.
"""

import argparse
import os
import signal
import sys
from typing import NoReturn

from meta_train.cli import interrupt


def command() -> NoReturn:
    """What a shell calls."""
    interrupt.end_process_at_once()
    code = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done
    sys.exit(code)


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit code, see ``guard`` and ``interrupt``."""
    try:
        from meta_train.cli import guard

        return guard.run(lambda: _run(argv))
    except KeyboardInterrupt:
        interrupt.say()
        return interrupt.INTERRUPTED


def parse(argv: list[str] | None) -> argparse.Namespace:
    from meta_train.cli.parser import build_parser

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


def _run(argv: list[str] | None) -> int:
    import jax

    from tasks import data

    arguments = parse(argv)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # a resumed run should not compile again
        jax.config.update("jax_compilation_cache_dir", str(data.cache_dir() / "jax"))
    return arguments.run(arguments) or 0
