"""Plans for TPU pods, see experiments.plan."""
