"""Any Optax optimizer on any task, against tuned baselines, with intervals."""
