"""Converts checkpoints of other LoRA implementations, as dicts of arrays, to our adapters and back."""
