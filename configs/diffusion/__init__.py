"""Diffusion models of pictures: a small one of digits, styles, and LoRA on Stable Diffusion."""
