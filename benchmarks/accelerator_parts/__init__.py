"""What `benchmarks.accelerator` measures: parts, each in a process of its own, and how they are run."""
