"""Kinds and families: what ``families.build`` takes, and what it says of what it does not."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metaopt
from metaopt import families
from metaopt.core import Learned
from metaopt.errors import UserError

SGD = Learned(lambda key: {"rate": jnp.float32(0.5)}, lambda theta, num_steps=None: optax.sgd(theta["rate"]))


@dataclasses.dataclass(frozen=True)
class Config:
    rate: float = 0.5
    name: str = dataclasses.field(default="x")

    def __post_init__(self):
        if self.rate <= 0:
            raise ValueError(f"rate must be above 0, got {self.rate}")


def from_config(config):
    return SGD._replace(init=lambda key: {"rate": config.rate})


MODULE = types.SimpleNamespace(Config=Config, build=from_config)


def from_settings(rate: float = 0.5, *, steps: int = 3, needed):
    del steps, needed
    return SGD._replace(init=lambda key: {"rate": rate})


def rate_of(learned):
    return float(learned.init(jax.random.key(0))["rate"])


@pytest.mark.parametrize("name", sorted(families.FAMILIES))
def test_every_family_is_of_the_kind_it_is_listed_with(name):
    entry = families.FAMILIES[name]
    assert entry.kind in families.KINDS
    learned = families.build(name)
    assert isinstance(learned, Learned) and learned.kind == entry.kind
    assert families.is_ours(name) and families.label(name) == name
    theta = jax.eval_shape(learned.init, jax.random.key(0))
    assert jax.tree.leaves(theta) and all(x.dtype == jnp.float32 for x in jax.tree.leaves(theta))
    if entry.kind == "optimizer":
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), theta)
        assert isinstance(learned.bind(zeros, num_steps=10), optax.GradientTransformationExtraArgs)


@pytest.mark.parametrize("kind", sorted(families.KINDS))
def test_baselines_of_a_kind(kind):
    baselines = families.baselines(kind)
    assert bool(baselines) == bool(families.KINDS[kind].baselines)
    assert all(isinstance(b, families.Baseline) and len(b.rates) > 1 for b in baselines.values())


def test_a_learned_stands_for_itself():
    learned = families.build(SGD)
    assert rate_of(learned) == 0.5 and learned.kind == "optimizer"
    assert families.build(SGD._replace(kind="drift")).kind == "drift"
    assert not families.is_ours(SGD) and families.defaults(SGD) == {}
    with pytest.raises(UserError, match="is a Learned and takes no settings, got hidden, rate"):
        families.build(SGD, hidden=8, rate=1.0)


def test_what_is_like_a_module_is_built_from_its_config():
    assert rate_of(families.build(MODULE)) == 0.5 and rate_of(families.build(MODULE, rate=2)) == 2.0
    assert families.defaults(MODULE) == {"rate": 0.5, "name": "x"}
    assert rate_of(families.build(type("Family", (), {"Config": Config, "build": staticmethod(from_config)}))) == 0.5


def test_a_function_is_called_with_the_settings():
    assert rate_of(families.build(from_settings, rate=2.0, needed=None)) == 2.0
    assert families.defaults(from_settings) == {"rate": 0.5, "steps": 3}  # what has to be given has no default
    assert rate_of(families.build(lambda: SGD)) == 0.5
    with pytest.raises(UserError, match="from_settings: .*needed"):
        families.build(from_settings)


@pytest.mark.parametrize("family", [MODULE, from_settings])
def test_settings_that_are_wrong(family):
    needed = {} if family is MODULE else {"needed": None}
    with pytest.raises(UserError, match="unknown setting of .* 'rat'; did you mean 'rate'"):
        families.build(family, rat=1.0, **needed)
    with pytest.raises(UserError, match="rate takes float, got 'fast'"):
        families.build(family, rate="fast", **needed)


def test_what_a_config_refuses_is_said_with_the_family():
    with pytest.raises(UserError, match="SimpleNamespace: rate must be above 0, got -1.0"):
        families.build(MODULE, rate=-1.0)
    with pytest.raises(UserError, match="celo2: hidden must be at least 1, got 0"):
        families.build("celo2", hidden=0)


@pytest.mark.parametrize("returned", [None, optax.sgd(0.1), (SGD.init, SGD.bind)])
def test_what_builds_something_else_is_told_so(returned):
    with pytest.raises(UserError, match=f"builds a metaopt.core.Learned, this one built {type(returned).__name__}"):
        families.build(lambda: returned)
    with pytest.raises(UserError, match="builds a metaopt.core.Learned"):
        families.build(types.SimpleNamespace(Config=Config, build=lambda config: returned))


def test_an_unknown_kind_names_the_nearest():
    with pytest.raises(UserError, match="unknown kind of Learned 'optimiser'; did you mean 'optimizer'"):
        families.build(SGD._replace(kind="optimiser"))


def test_unknown_names_and_what_is_no_family():
    with pytest.raises(UserError, match="unknown family 'smal_fc'; did you mean 'small_fc'"):
        families.build("smal_fc")
    for nothing in (3, None, {"init": SGD.init}):
        with pytest.raises(UserError, match="is no family: give a metaopt.core.Learned, .*; got (int|NoneType|dict)"):
            families.build(nothing)


def test_references(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import dataclasses, optax\n"
        "from metaopt.core import Learned\n"
        "learned = Learned(lambda key: {'rate': 0.5}, lambda theta, num_steps=None: optax.sgd(theta['rate']))\n"
        "def scaled(scale: float = 2.0):\n"
        "    return learned._replace(init=lambda key: {'rate': 0.5 * scale})\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Config:\n"
        "    rate: float = 3.0\n"
        "def build(config):\n"
        "    return learned._replace(init=lambda key: {'rate': config.rate})\n"
        "number = 3\n"
    )
    assert rate_of(families.build(f"{path}:learned")) == 0.5
    assert rate_of(families.build(f"{path}:scaled", scale=4.0)) == 2.0
    assert rate_of(families.build(str(path), rate=7.0)) == 7.0  # the file itself is a module with Config and build
    assert rate_of(metaopt.build("metaopt.optimizers.hand", learning_rate=0.1)._replace(init=SGD.init)) == 0.5
    assert not families.is_ours(str(path)) and families.label(f"{path}:scaled") == f"{path}:scaled"
    with pytest.raises(UserError, match="mine.py:number is no family: .*got int"):
        families.build(f"{path}:number")
    with pytest.raises(UserError, match="'scald'; did you mean 'scaled'"):
        families.build(f"{path}:scald")


def test_theta_is_float32_whatever_is_initialized():
    learned = families.build(Learned(lambda key: (1, [np.float64([2.0, 3.0]), jnp.int32(4)]), SGD.bind))
    theta = learned.init(jax.random.key(0))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(theta))
    np.testing.assert_array_equal(np.concatenate([np.ravel(x) for x in jax.tree.leaves(theta)]), [1, 2, 3, 4])
    with jax.enable_x64(True):
        assert jax.tree.leaves(learned.init(jax.random.key(0)))[1].dtype == jnp.float32
