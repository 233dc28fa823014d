"""Settings that a file does not hold and that make another optimizer: they are asked for, never guessed."""

import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from metaopt.errors import UserError


class Question(NamedTuple):
    """What an option means, and a value that the example in the message has for it."""

    meaning: str
    example: Any


class Unanswered(UserError):
    """Options that must be given; ``example`` has a value for each of them."""

    def __init__(self, questions: dict[str, Question]):
        self.example = {option: question.example for option, question in questions.items()}
        asked = "; the option ".join(f"{option}, {question.meaning}" for option, question in questions.items())
        super().__init__(
            f"it does not say everything, and a wrong choice makes another optimizer: pass the option {asked}"
        )


def require(given: dict[str, Any], questions: dict[str, Question]) -> None:
    """Raises Unanswered unless every option of ``questions`` is given: all that are missing, at once."""
    missing = {option: question for option, question in questions.items() if given.get(option) is None}
    if missing:
        raise Unanswered(missing)


def command(words: Sequence[Any], options: dict[str, Any]) -> str:
    """The command line of ``words`` and options.

    >>> command(["metaopt", "import", "x.npy", "--as", "mine"], {"num_epochs": 4})
    'metaopt import x.npy --as mine --num-epochs 4'
    """
    as_text = {
        option: str(value).lower() if isinstance(value, bool) else str(value) for option, value in options.items()
    }
    flags = [word for option, value in as_text.items() for word in (f"--{option.replace('_', '-')}", value)]
    return shlex.join([*map(str, words), *flags])
