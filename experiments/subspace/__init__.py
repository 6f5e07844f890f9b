"""The rank-deficiency analysis of trained adapters (`python -m experiments.subspace`)."""
