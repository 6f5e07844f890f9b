"""What a run needs of a TPU slice, by compilation (`python -m experiments.pod_plan`)."""
