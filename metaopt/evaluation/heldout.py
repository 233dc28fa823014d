"""Whether a task is held out, given the tasks that a checkpoint was meta-trained on."""

from typing import Any

Traits = dict[str, Any]  # result of ``Task.traits``


def novelty(task: Traits, trained_on: list[Traits] | None) -> tuple[str, ...]:
    """The traits in which a task differs from all tasks that a checkpoint was meta-trained on.

    Args:
      task: traits of the task.
      trained_on: traits of the meta-training tasks, from the manifest of the checkpoint; None if
        they are not known, as for weights of other projects.

    Returns:
      ("unknown",) if the meta-training tasks are not known; ("family",) if none has the same
      family. Otherwise "dataset" if the task has a data set that none has, and "architecture" if
      its sizes are not in the range of any task of its family. Empty if the task is in the
      meta-training distribution.
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
    """Whether every size of the task is in the range of a meta-training task."""

    def is_within(name: str) -> bool:
        return min(ranges[name]) <= min(sizes[name]) and max(sizes[name]) <= max(ranges[name])

    return all(name in ranges and is_within(name) for name in sizes)
