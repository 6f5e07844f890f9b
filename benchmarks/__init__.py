"""Benchmarks: speed and work against peers, always as ratios measured in one run on one machine."""
