"""Is a task held out? Decided from what a checkpoint was meta-trained on."""

from typing import Any

Traits = dict[str, Any]


def novelty(task: Traits, trained_on: list[Traits] | None) -> tuple[str, ...]:
    """In what a task is new to a checkpoint.

    Args:
      task: ``Task.traits()``.
      trained_on: the traits of the meta-training tasks, from the manifest; None if it
        has none, as for weights of other projects.

    Returns:
      ("unknown",) if nobody said; ("family",) if no meta-training task had its layers; otherwise "dataset" if it
      uses one that none had, and "architecture" if no task of its family covered its
      sizes. Empty: it is of the meta-training distribution.
    """
    if trained_on is None:
        return ("unknown",)
    relatives = [t for t in trained_on if t["family"] == task["family"]]
    if not relatives:
        return ("family",)
    seen = {name for t in trained_on for name in t["datasets"]}
    new = ("dataset",) if not set(task["datasets"]) <= seen else ()
    if not any(_covers(t["architecture"], task["architecture"]) for t in relatives):
        new += ("architecture",)
    return new


def _covers(ranges: dict[str, list], sizes: dict[str, list]) -> bool:
    """Whether every size of the task lies within the range meta-training drew from."""
    within = lambda name: min(ranges[name]) <= min(sizes[name]) and max(sizes[name]) <= max(ranges[name])
    return all(name in ranges and within(name) for name in sizes)
