"""Plans for TPU pods, see experiments.pod_plan."""
