"""Configs of `experiments.latency`: models, adapters, and grids of batch sizes and lengths."""
