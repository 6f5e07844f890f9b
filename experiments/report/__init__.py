"""The paper's tables from run records (`python -m experiments.report`)."""
