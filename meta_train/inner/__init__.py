"""Inner problems: the training that a meta-gradient is taken through."""
