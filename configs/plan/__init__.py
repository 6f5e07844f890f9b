"""Plans for TPUs and GPUs, see experiments.plan."""
