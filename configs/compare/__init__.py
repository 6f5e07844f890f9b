"""Configs of `experiments.compare`."""
