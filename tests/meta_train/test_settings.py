"""Recipes as text: names of settings, defaults, what goes with what, JSON."""

import pytest

from meta_train import recipes, settings
from metaopt import checkpoint, families
from metaopt.errors import UserError


def changed(*pairs, base="images-small"):
    return settings.override(recipes.find(base), list(pairs))


@pytest.mark.parametrize("name", recipes.names())
def test_json_and_back_is_the_same_recipe(name):
    recipe = recipes.find(name)
    assert settings.from_json(settings.to_json(recipe)) == recipe


@pytest.mark.parametrize("typed", ["sigma=0.5", "estimator.sigma=0.5"])
def test_a_setting_is_named_bare_or_by_its_section(typed):
    assert changed(typed).estimator.sigma == 0.5


def test_a_value_is_set_back_to_its_default():
    recipe = changed("at_once=default", "sample_clip=default", "settings.hidden=default", "estimator=default")
    assert (
        recipe.estimator.at_once == 0 and recipe.estimator.sample_clip == 0.0 and recipe.estimator.name == "es_single"
    )
    assert recipe.family.settings == {"step_multiplier": 0.03, "schedule": True, "relative": True}
    assert changed("settings=default").family.settings == {}


def test_settings_of_a_family_and_options_of_an_estimator_go_with_it():
    assert changed("family=velo").family.settings == {}
    assert changed("settings.hidden=64", "family=velo").family.settings == {"hidden": 64}
    assert changed("family=small_fc").family.settings["hidden"] == 8  # the same one
    with_options = changed("estimator=gpes", "options.windows_per_draw=4", "sample_clip=0.0")
    assert with_options.estimator.options == {"windows_per_draw": 4}
    assert settings.override(with_options, ["estimator=pes"]).estimator.options == {}


def test_a_checkpoint_to_start_from_implies_family_and_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("METAOPT_CHECKPOINTS", str(tmp_path))
    import jax

    theta = families.build("velo", hidden=4, bank=2).init(jax.random.key(0))
    checkpoint.save("small-velo", "velo", {"hidden": 4, "bank": 2}, theta)
    from meta_train import warm_start

    family = changed("start=small-velo").family  # of a recipe with small_fc and its settings
    assert warm_start.source(family) == ("velo", {"hidden": 4, "bank": 2})
    # What is given besides is compared as values, defaults filled in.
    same = changed("start=small-velo", "family=velo", "settings.bank=2", "settings.relative=True").family
    assert warm_start.source(same).family == "velo"
    for given, message in [
        ("settings.bank=3", "checkpoint small-velo has bank=2, the recipe asks for 3"),
        ("settings.relative=False", "has relative=True, the recipe asks for False"),
        ("settings.bnk=2", "did you mean 'bank'?"),
        ("family=celo", "checkpoint small-velo is of the family velo, the recipe asks for celo"),
    ]:
        with pytest.raises(UserError, match=message.replace("?", r"\?")):
            warm_start.source(changed("start=small-velo", given).family)


@pytest.mark.parametrize(
    "pair, message",
    [
        ("name=pes", "name is a setting of family and estimator and strategy: write family or estimator or strategy"),
        ("estimator.sigm=1", "unknown setting of estimator 'sigm'; did you mean 'sigma'?"),
        ("sgma=1", "did you mean 'sigma'?"),
        ("window.x=1", "unknown setting 'window.x'"),
        ("sigma=x", "sigma takes float, got 'x'"),
        ("outer_steps=1e3", "outer_steps takes int, got 1000.0"),
        ("first_order=1", "first_order takes bool, got 1"),
        ("family=", "name a family, family=NAME, or a checkpoint to begin from, start=NAME"),
        ("objective=loss", "unknown objective 'loss' (known: linear, log, raw)"),
        ("split=test", "unknown split 'test'"),
    ],
)
def test_mistakes_are_named(pair, message):
    with pytest.raises(UserError) as error:
        changed(pair)
    assert message in str(error.value)
