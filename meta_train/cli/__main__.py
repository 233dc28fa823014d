"""``python -m meta_train.cli``: the command where it is not installed."""

from meta_train.cli import command

command()
