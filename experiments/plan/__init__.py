"""What a run needs of TPUs or GPUs, by compilation (`python -m experiments.plan`)."""
