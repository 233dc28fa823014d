"""Lists of checkpoints, made from their manifests and nothing else."""

from typing import Any

Manifests = dict[str, dict[str, Any]]


def text(manifests: Manifests) -> str:
    """A line for each checkpoint."""
    return "\n".join(f"{name:24} {m['family']:12} {m.get('summary', '')}" for name, m in manifests.items())


def markdown(manifests: Manifests) -> str:
    """The page ``checkpoints/README.md``."""
    parts = [
        "# Pretrained learned optimizers",
        "Made by `metaopt list --markdown > checkpoints/README.md` from the manifests; do not edit.",
    ]
    for name, manifest in manifests.items():
        parts += [f"## {name}", manifest.get("summary", ""), _facts(name, manifest)]
    return "\n\n".join(part for part in parts if part)


def _facts(name: str, manifest: dict[str, Any]) -> str:
    config = ", ".join(f"{k}={v}" for k, v in manifest["config"].items())
    lines = [f"- family: `{manifest['family']}` ({config}); licence {manifest.get('licence', 'unknown')}"]
    if "cost" in manifest:
        cost = manifest["cost"]
        lines.append(
            f"- cost: {cost['outer_steps']:,} outer steps, {cost['inner_steps']:,} inner steps, {cost['hours']} hours"
        )
    for suite, result in manifest.get("results", {}).items():
        early, late = _ratio(result["steps_ratio_25%"]), _ratio(result["steps_ratio_100%"])
        lines.append(
            f"- {suite}, {result['num_steps']} steps, {result['seeds']} seeds, {result['draws']} draws: median share "
            f"of the steps of tuned {result['reference']} to its loss at 25 % {early}, at 100 % {late}; final "
            f"validation loss not worse on {result['final_valid_not_worse']} problems; failed runs {result['diverged']}"
        )
    return "\n".join(lines)


def _ratio(ratio: dict[str, Any]) -> str:
    show = lambda value: "miss" if value is None else f"{value:.2f}"
    return f"{show(ratio['median'])} [{', '.join(map(show, ratio['interval']))}]"
