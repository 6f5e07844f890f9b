"""Configurations: one file per family of table rows."""
