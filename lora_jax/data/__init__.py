"""Data sets and tasks."""
