"""Configs of experiments.tune."""
