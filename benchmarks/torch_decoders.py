"""Decoders of PyTorch `transformers` from the places that ours are read from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers


def load(place: Path) -> Any:
    """A decoder in evaluation mode.

    Args:
      place: from `hub.find`: a folder, or a GGUF file, which transformers reads with the package gguf.
    """
    if place.is_dir():
        return transformers.AutoModelForCausalLM.from_pretrained(place).eval()
    return transformers.AutoModelForCausalLM.from_pretrained(
        place.parent, gguf_file=place.name
    ).eval()
