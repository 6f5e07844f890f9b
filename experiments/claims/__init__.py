"""What comparisons say of published claims about LoRA (`python -m experiments.claims`)."""
