"""Training: data sets, recipes, the loop, checkpoints. `recipes` imports no torch."""
