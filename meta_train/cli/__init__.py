"""The command ``metaopt``.

Nothing that takes long is imported here: a Ctrl-C while JAX is being imported ends in one line too.
"""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterator

INTERRUPTED = 128 + signal.SIGINT  # exit code, as a shell has it


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit code, see ``guard``. Ctrl-C is one line on stderr and 130."""
    try:
        with _no_interrupt_swallowed():
            from meta_train.cli import guard

            return guard.run(lambda: _command(argv))
    except KeyboardInterrupt as interrupt:
        _say_interrupted(str(interrupt))
        return INTERRUPTED


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


def _command(argv: list[str] | None) -> int:
    import jax

    from tasks import data

    arguments = parse(argv)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # a resumed run should not compile again
        jax.config.update("jax_compilation_cache_dir", str(data.cache_dir() / "jax"))
    return arguments.run(arguments) or 0


@contextlib.contextmanager
def _no_interrupt_swallowed() -> Iterator[None]:
    """Ends the process where a Ctrl-C comes in a callback, from which Python lets no exception out."""
    previous = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            return previous(unraisable)
        _say_interrupted("")
        os._exit(INTERRUPTED)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = previous


def _say_interrupted(why: str) -> None:
    with contextlib.suppress(OSError):
        print(f"metaopt: interrupted{f': {why}' if why else ''}", file=sys.stderr, flush=True)
