"""Few-shot prompting, see experiments.prompting."""
