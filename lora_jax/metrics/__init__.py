"""The metrics of the paper's tasks, computed as the paper's code computes them."""
