"""Configs for texts of your own: classification and regression."""
