"""Any algorithm on any task, against tuned baselines, with intervals."""

from metaopt.evaluation.evaluate import evaluate

__all__ = ["evaluate"]
