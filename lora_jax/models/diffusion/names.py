"""Names of diffusers and paths here: `attn1.to_out.0` is `attn1/to_out`, all others differ in dots only.

Adapters of diffusers and of kohya's scripts name the modules of a U-Net as diffusers does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from lora_jax.models.layouts import Layout

# In diffusers a list of a linear layer and a dropout, which has no parameters.
_OUTPUT = re.compile(r"(^|/)to_out(?=/|$)")
_PUBLISHED_OUTPUT = re.compile(r"(^|\.)to_out\.0(?=\.|$)")
# Attention in autoencoders that were written before diffusers 0.15.
OLD_ATTENTION = {
    ".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0.",
}  # fmt: skip


def published_module(path: str) -> str:
    """The name that diffusers (or transformers, of a text encoder) gives to the module at a path.

    `down_blocks/0/attentions/0/transformer_blocks/0/attn1/to_out` is
    `down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0`.
    """
    return _OUTPUT.sub(r"\1to_out/0", path).replace("/", ".")


def module_path(name: str) -> str:
    """The path of the module that diffusers gives a name: the inverse of `published_module`."""
    return _PUBLISHED_OUTPUT.sub(r"\1to_out", name).replace(".", "/")


def layout(
    paths: Iterable[str], *, prefix: str = "", heads: str = "(?!)", buffers: str = "(?!)"
) -> Layout:
    """How the tensors of a published file relate to the parameters at these paths.

    Args:
      paths: of all parameters of a model.
      prefix: of all published names; files without it are read too.
      heads: regular expression of tensors, below the prefix, that are not used.
      buffers: regular expression of other tensors that are not needed.
    """
    names = {}
    for path in paths:
        module, _, leaf = path.rpartition("/")
        name = published_module(module).removeprefix(prefix)
        names[path if leaf == "embedding" else module] = (
            f"{name}.weight" if leaf == "embedding" else name
        )
    return Layout(prefix=prefix, names=names, heads=heads, buffers=buffers, older=OLD_ATTENTION)
