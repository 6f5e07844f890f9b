"""Adapters of diffusers and of kohya's scripts, both ways: styles of Stable Diffusion as small files."""

from lora_jax.interop.diffusion.reading import Style, read
from lora_jax.interop.diffusion.writing import write

__all__ = ["Style", "read", "write"]
