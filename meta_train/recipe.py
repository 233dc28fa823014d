"""A recipe: every setting of one meta-training run, a section for each concern.

    recipe = Recipe(
        family=Family("small_fc", {"hidden": 8}),
        tasks="digits",
        estimator=Estimation(name="pes", sigma=0.03),
    )

A file that exports one as ``recipe`` is an experiment: shipped, in ``meta_train/recipes``, or yours.
Its docstring says what it is for, what it costs and what to expect. Wherever a name stands for a
family, tasks or an estimator, the object itself may stand, or a reference to it.
"""

import dataclasses
from typing import Any

from meta_train import estimators, strategies
from meta_train.estimators.samples import Sampling
from meta_train.inner.episodes import Episodes, check_solved
from meta_train.outer import OuterLoop
from meta_train.strategies import Strategy
from metaopt import families
from metaopt.core import Learned, Task
from metaopt.errors import UserError, check_range
from tasks import suites

ONLY_ESTIMATORS = ("options", "shaping", "sample_clip")  # settings that a strategy has no use for


@dataclasses.dataclass(frozen=True)
class Family:
    """What is meta-trained."""

    name: Any = ""  # of metaopt.families, a reference, or the object; none is that of the checkpoint in start
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)  # of the family
    start: str = ""  # a checkpoint whose theta is begun from; none is a fresh one
    only: str = ""  # entries of theta that are meta-trained, comma separated; none is all

    def __post_init__(self):
        if not self.name and not self.start:
            raise UserError("name a family, family=NAME, or a checkpoint to begin from, start=NAME")
        if self.only and not self.start:
            raise UserError(f"only={self.only} holds the rest of theta at a checkpoint's: name it with start=")


@dataclasses.dataclass(frozen=True)
class Estimation(Sampling):
    """How meta-gradients are estimated."""

    name: Any = "es_single"  # of meta_train.estimators, a reference, or the constructor
    options: dict[str, Any] = dataclasses.field(default_factory=dict)  # of this estimator alone

    def __post_init__(self):
        super().__post_init__()
        estimators.check(self.name, self.options)


@dataclasses.dataclass(frozen=True)
class Run:
    """How often a run looks up from its work."""

    steps_per_dispatch: int = 10  # outer steps between two looks at the clock
    save_every: int = 100  # outer steps between two saved states

    def __post_init__(self):
        for name in ("steps_per_dispatch", "save_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One meta-training run.

    Attributes:
      family: what is meta-trained; also its name, a reference, or the object.
      tasks: what is meta-trained on: the name of a suite, a task, or several of both.
      episodes: lengths, and what is recorded.
      estimator: how meta-gradients are estimated; also its name, a reference, or the constructor.
      strategy: a search strategy in the place of the estimator; also its name.
      outer: how theta moves.
      run: dispatches and saves.

    Raises:
      UserError: for a setting that is unknown, of another type, or does not go with another one.
    """

    family: Family
    tasks: Any
    episodes: Episodes = Episodes()
    estimator: Estimation = Estimation()
    strategy: Strategy = Strategy()
    outer: OuterLoop = OuterLoop()
    run: Run = Run()

    def __post_init__(self):
        for section in ("family", "estimator", "strategy"):
            kind, value = SECTIONS[section], getattr(self, section)
            if not isinstance(value, kind):
                object.__setattr__(self, section, kind(name=value))
        for section in SECTIONS:
            for setting, value in vars(getattr(self, section)).items():
                check_range(setting, value)
        dispatch, total, save = self.run.steps_per_dispatch, self.outer.outer_steps, self.run.save_every
        if total % dispatch or save % dispatch:
            raise UserError(
                "outer_steps and save_every must be multiples of steps_per_dispatch, got "
                f"{total}, {save} and {dispatch}"
            )
        self.episodes.check_window(self.estimator.window)
        if self.strategy.name:
            self._check_strategy()
        # What can be built without devices is built here, so that a bad setting is refused before
        # anything is written. A checkpoint to begin from waits: reading weights would make devices.
        tasks = self.build_tasks()
        if self.family.name and not self.family.start:
            learned = self.build_family()
            for task in tasks:
                check_solved(learned, task)

    def build_tasks(self) -> tuple[Task, ...]:
        return suites.build(self.tasks)

    def build_family(self) -> Learned:
        """Fresh, whatever ``start`` says; see ``warm_start``."""
        return families.build(self.family.name, **self.family.settings)

    def num_sharded(self) -> int:
        """What is sharded over the devices: members of a population, or samples of an estimator."""
        return self.strategy.population if self.strategy.name else self.estimator.num_samples

    def _check_strategy(self):
        lockstep = strategies.STRATEGIES[self.strategy.name].lockstep
        if lockstep and self.episodes.shortest != self.episodes.longest:
            raise UserError(
                f"strategy={self.strategy.name} needs episodes of one length: set shortest and longest to the same, "
                f"got {self.episodes.shortest} and {self.episodes.longest}"
            )
        if not self.estimator.sigma:
            raise UserError("a strategy needs a sigma above 0")
        default = Estimation()
        for name in ONLY_ESTIMATORS:
            if getattr(self.estimator, name) != getattr(default, name):
                raise UserError(f"{name} is for estimators: leave it out with strategy={self.strategy.name}")


SECTIONS = {
    "family": Family,
    "episodes": Episodes,
    "estimator": Estimation,
    "strategy": Strategy,
    "outer": OuterLoop,
    "run": Run,
}
