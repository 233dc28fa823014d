"""Any algorithm on any task, against tuned baselines, with intervals."""

from metaopt.evaluation.comparison import evaluate

__all__ = ["evaluate"]
