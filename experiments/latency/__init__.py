"""Forward latency of a model, merged, unmerged and with adapters (`python -m experiments.latency`)."""
