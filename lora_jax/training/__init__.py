"""The training loop and its parts: optimizer, train step, checkpoints, run records."""
