"""Inner problems: what a meta-gradient is taken through."""
