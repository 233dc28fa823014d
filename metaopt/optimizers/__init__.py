"""Learned optimizers: gradients in, updates out, one family a file; see ``metaopt.families``."""
