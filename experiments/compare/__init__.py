"""Comparisons: methods on one task at equal budgets (`python -m experiments.compare`)."""
