"""Benchmarks: speed and work against peers, always as ratios of one run on one machine."""
