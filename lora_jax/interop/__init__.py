"""Checkpoints of other LoRA implementations, as dicts of arrays, into our adapters and back."""
