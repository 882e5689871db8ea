"""Training: data sets, recipes, the loop, checkpoints. `options` imports no torch."""
