"""Structure and forgetting of trained adapters (`python -m experiments.structure`)."""
