"""Experiments, one a file: purpose, cost and expected result in the first lines."""
