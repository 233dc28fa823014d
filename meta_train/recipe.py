"""A recipe: every setting of one meta-training run, flat and plain.

A file in ``meta_train/recipes`` exports one as ``recipe``; its docstring says what it
is for, what it costs and what to expect.
"""

import ast
import dataclasses
import importlib
import pkgutil
from pathlib import Path
from typing import Any

import meta_train.recipes
from meta_train import estimators, outer, strategies, warm_start
from meta_train.estimators import samples
from meta_train.inner import supervised
from meta_train.inner.forcing import Expert
from meta_train.inner.horizon import Horizon
from metaopt import optimizers
from metaopt.core import LearnedOptimizer, Theta
from metaopt.errors import UserError, check_type, unknown
from tasks import suites

ONLY_ESTIMATORS = ("options", "shaping", "sample_clip", "replay")  # settings that a strategy has no use for


@dataclasses.dataclass(frozen=True)
class Recipe:
    # what
    suite: str = "digits"  # tasks.suites
    optimizer: str = "small_fc"  # metaopt.optimizers.FAMILIES
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)  # of the family
    start: str = ""  # a checkpoint whose theta is begun from; none is a fresh one
    only: str = ""  # entries of theta that are meta-trained, comma separated; none is all
    # inner problem
    shortest: int = 100  # inner steps of an episode
    longest: int = 1000
    distribution: str = "log_uniform"  # of the lengths: log_uniform or uniform
    growth: int = 0  # outer steps over which longest grows from shortest; 0 is at once
    split: str = "valid"  # whose loss is the meta-loss: train or valid
    objective: str = "log"  # log or linear, of the loss relative to its start
    combine: str = "mean"  # how losses make the meta-objective: mean, last, fresh (last, on fresh batches), min
    first_order: bool = False  # gradients of the inner loss are not differentiated
    expert: dict[str, Any] = dataclasses.field(default_factory=dict)  # of inner.forcing.Expert; {} is none
    replay: int = 0  # states kept of each sample to begin episodes from, see estimators.replay
    replay_fresh: float = 0.2  # share of the episodes that are new all the same
    # estimator
    estimator: str = "es_single"  # meta_train.estimators.ESTIMATORS
    options: dict[str, Any] = dataclasses.field(default_factory=dict)  # of the estimator
    shaping: str = "none"  # of the losses of evolution strategies: none, sign, rank, normalised
    num_samples: int = 16  # for each task of the suite; for evolution strategies, antithetic pairs
    window: int = 50  # inner steps between two outer steps
    sigma: float = 0.01  # standard deviation of the perturbations of theta
    sample_clip: float = 0.0  # norm of the gradient of one sample, where it is differentiated; 0 is none
    chunk: int = 0  # samples computed at once on a device; 0 is all
    # strategy: takes the place of the estimator, what it shares with one is above
    strategy: str = ""  # meta_train.strategies.STRATEGIES; none is an estimator
    population: int = 64  # members, each of which runs num_samples episodes of each task
    normalise: str = "zscore"  # of the losses of an episode over the population: none, zscore, rank
    # outer loop
    outer_steps: int = 1000
    learning_rate: float = 3e-3
    warmup: int = 100
    clip: float = 1.0
    weight_decay: float = 0.0
    seed: int = 0
    # run
    steps_per_dispatch: int = 10  # outer steps between two looks at the clock
    save_every: int = 100  # outer steps between two checkpoints

    def __post_init__(self):
        if self.suite not in suites.SUITES:
            raise unknown("suite", self.suite, suites.SUITES)
        estimators.check(self.estimator, self.options)
        for name in ("outer_steps", "steps_per_dispatch", "save_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.outer_steps % self.steps_per_dispatch or self.save_every % self.steps_per_dispatch:
            raise UserError(
                "outer_steps and save_every must be multiples of steps_per_dispatch, got "
                f"{self.outer_steps}, {self.save_every} and {self.steps_per_dispatch}"
            )
        if self.only and not self.start:
            raise UserError(f"only={self.only} holds the rest of theta at a checkpoint's: name it with start=")
        if self.replay and self.expert:
            raise UserError("replay brings back episodes that the expert led: choose one of replay= and expert.*")
        if self.strategy:
            self._check_strategy()
        # Built here so that a bad setting is refused before anything is written.
        # ``start`` waits until the devices are made: reading weights would make them.
        optimizers.build(self.optimizer, **self.settings)
        for part in (self.inner, self.samples, self.outer):
            part()

    def _check_strategy(self):
        self.strategies()
        if strategies.STRATEGIES[self.strategy].lockstep and self.shortest != self.longest:
            raise UserError(
                f"strategy={self.strategy} needs episodes of one length: set shortest and longest to the same, "
                f"got {self.shortest} and {self.longest}"
            )
        for field in dataclasses.fields(self):
            if field.name in ONLY_ESTIMATORS and getattr(self, field.name) not in (field.default, {}):
                raise UserError(f"{field.name} is for estimators: leave it out with strategy={self.strategy}")

    def learned_optimizer(self) -> LearnedOptimizer:
        optimizer = optimizers.build(self.optimizer, **self.settings)
        if not self.start:
            return optimizer
        return warm_start.begin_from(optimizer, self._start(), self.only.split(",") if self.only else ())

    def complete(self, theta: Theta) -> Theta:
        """What is deployed: the theta of a run and the entries that it held constant."""
        return {**self._start(), **theta} if self.start else theta

    def _start(self) -> Theta:
        return warm_start.read(self.start, self.optimizer, self.settings)

    def inner(self) -> supervised.Config:
        return supervised.Config(
            Horizon(self.shortest, self.longest, self.window, self.distribution, self.growth),
            self.split,
            self.objective,
            self.first_order,
            _expert(self.expert) if self.expert else None,
        )

    def samples(self) -> samples.Config:
        return samples.Config(
            self.num_samples,
            self.window,
            self.sigma,
            sample_clip=self.sample_clip,
            chunk=self.chunk,
            combine=self.combine,
            shaping=self.shaping,
            replay=self.replay,
            replay_fresh=self.replay_fresh,
        )

    def strategies(self) -> strategies.Config:
        return strategies.Config(
            self.strategy,
            self.population,
            self.normalise,
            self.num_samples,
            self.window,
            self.sigma,
            self.chunk,
            self.combine,
        )

    def spread(self) -> int:
        """How many of what is spread over the devices: samples, or members of a population."""
        return self.population if self.strategy else self.num_samples

    def outer(self) -> outer.Config:
        return outer.Config(self.learning_rate, self.warmup, self.outer_steps, self.clip, self.weight_decay)


def names() -> list[str]:
    """The recipes that come with metaopt, as they are typed."""
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(meta_train.recipes.__path__))


def find(name: str) -> Recipe:
    """The recipe of that name. Raises UserError, naming the nearest, if there is none."""
    if name not in names():
        raise unknown("recipe", name, names())
    return importlib.import_module(f"meta_train.recipes.{name.replace('-', '_')}").recipe


def override(recipe: Recipe, pairs: list[str]) -> Recipe:
    """Applies ``name=value`` settings, ``settings.name=value`` for the family's own.

    ``options`` of the estimator and ``expert`` are given like ``settings``.

    Raises:
      UserError: for an unknown name or a value of another type than the default's.
    """
    fields = {f.name for f in dataclasses.fields(Recipe)}
    groups = {name: dict(getattr(recipe, name)) for name in fields if isinstance(getattr(recipe, name), dict)}
    changes: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise UserError(f"settings are given as name=value, got {pair!r}")
        group, dot, entry = name.partition(".")
        if dot and group in groups:
            groups[group][entry] = _literal(text)
        elif name not in fields - set(groups):
            raise unknown("setting", name, fields - set(groups))
        else:
            changes[name] = _typed(name, text, getattr(recipe, name))
    return dataclasses.replace(recipe, **changes, **groups)


def from_json(values: dict[str, Any]) -> Recipe:
    """Rebuilds a recipe from ``config.json``."""
    fields = {f.name for f in dataclasses.fields(Recipe)}
    for name in values:
        if name not in fields:
            raise unknown("setting", name, fields)
    return Recipe(**values)


def _expert(settings: dict[str, Any]) -> Expert:
    known = {f.name: f.default for f in dataclasses.fields(Expert)}
    for name, value in settings.items():
        if name not in known:
            raise unknown("setting of an expert", name, known)
        check_type(f"expert.{name}", value, known[name])
    return Expert(**settings)


def _literal(text: str):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _typed(name: str, text: str, default):
    value = text if isinstance(default, str) else _literal(text)
    check_type(name, text if isinstance(value, str) else value, default)
    return float(value) if isinstance(default, float) else value


def purpose(name: str) -> str:
    """First line of a recipe's docstring."""
    path = Path(meta_train.recipes.__path__[0]) / f"{name.replace('-', '_')}.py"
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
