"""Sweeps over rank, learning rate, seed and targets, see experiments.sweep."""
