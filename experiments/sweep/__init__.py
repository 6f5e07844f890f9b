"""Sweeps: the points of a grid as runs of few programs (`python -m experiments.sweep`)."""
