"""The rank-deficiency analysis of adapters (`python -m experiments.subspace`)."""
