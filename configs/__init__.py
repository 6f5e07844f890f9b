"""Configurations: one file for each table row family."""
