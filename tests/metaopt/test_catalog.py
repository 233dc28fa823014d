"""Lists of checkpoints."""

from pathlib import Path

from metaopt import catalog, checkpoint

SHIPPED = Path(__file__).parents[2] / "checkpoints"


def test_the_page_of_shipped_checkpoints_is_what_the_manifests_say(monkeypatch):
    monkeypatch.delenv("METAOPT_CHECKPOINTS", raising=False)
    manifests = {p.parent.name: checkpoint.read_manifest(p.parent) for p in sorted(SHIPPED.glob("*/manifest.json"))}
    assert manifests
    assert (SHIPPED / "README.md").read_text() == catalog.markdown(manifests) + "\n"


def test_a_result_is_shown_with_its_misses():
    ratio = {"median": None, "interval": [0.25, None]}
    result = {
        "num_steps": 10, "seeds": 2, "draws": 1, "reference": "adamw", "steps_ratio_25%": ratio,
        "steps_ratio_100%": ratio, "final_valid_not_worse": "0/1", "diverged": "1/2",
    }  # fmt: skip
    page = catalog.markdown({"x": {"kind": "optimizer", "family": "hand", "config": {}, "results": {"s": result}}})
    assert "at 100 % miss [0.25, miss]" in page and "failed runs 1/2" in page


def test_the_list_is_a_line_for_each():
    manifests = {
        "mine": {"kind": "optimizer", "family": "small_fc", "config": {}, "summary": "for images"},
        "x": {"kind": "update_rule", "family": "bandit"},
    }
    lines = catalog.text(manifests).splitlines()
    assert [line.split() for line in lines] == [
        ["mine", "optimizer", "small_fc", "for", "images"],
        ["x", "update_rule", "bandit"],
    ]


def test_the_page_says_the_kind_of_each_checkpoint():
    page = catalog.markdown({"x": {"kind": "update_rule", "family": "bandit", "config": {"arms": 3}}})
    assert "- update_rule of family `bandit` (arms=3); licence unknown" in page
