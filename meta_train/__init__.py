"""Learning theta: inner problems, estimators, the outer loop, recipes, the command."""
