"""Listings of checkpoints, written from their manifests alone."""

from typing import Any

Manifests = dict[str, dict[str, Any]]  # by the name of the checkpoint, see ``checkpoint.read_manifest``


def text(manifests: Manifests) -> str:
    """One line for each checkpoint: name, kind, family, summary."""
    return "\n".join(
        f"{name:24} {m['kind']:12} {m['family']:12} {m.get('summary', '')}".rstrip() for name, m in manifests.items()
    )


def markdown(manifests: Manifests) -> str:
    """The page ``checkpoints/README.md``."""
    paragraphs = [
        "# Pretrained learned optimizers",
        "Made by `metaopt list --markdown > checkpoints/README.md` from the manifests; do not edit.",
    ]
    for name, manifest in manifests.items():
        paragraphs += [f"## {name}", manifest.get("summary", ""), _facts(manifest)]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _facts(manifest: dict[str, Any]) -> str:
    """A bullet list of what the manifest of one checkpoint says: kind, settings, cost, results."""
    config = ", ".join(f"{k}={v}" for k, v in manifest["config"].items())
    licence = manifest.get("licence", "unknown")
    lines = [f"- {manifest['kind']} of family `{manifest['family']}` ({config}); licence {licence}"]
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
    """A median and its interval; None, where the reference loss was never reached, is shown as "miss"."""
    median, *interval = ("miss" if x is None else f"{x:.2f}" for x in (ratio["median"], *ratio["interval"]))
    return f"{median} [{', '.join(interval)}]"
