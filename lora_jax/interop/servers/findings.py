"""What a program that serves adapters does not take as it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from lora_jax.interop.peft.tensors import PREFIX

Config = Mapping[str, Any]  # the content of adapter_config.json
Tensors = Mapping[str, np.ndarray]  # of adapter_model.safetensors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """Something of an adapter that a program cannot load, or would compute something else with.

    Attributes:
      what: it is.
      remedy: what to do, or what the export does about it.
      mended: whether the export mends it, so that the program gives the adapter's logits.
    """

    what: str
    remedy: str
    mended: bool = False


MERGE = (
    "merge the adapter into its base and serve the model (python -m experiments.convert to_hugging_face, or "
    "to_gguf)"
)


def plain_names(tensors: Tensors) -> list[str]:
    """The names of an adapter's tensors without PEFT's prefix."""
    return [name.removeprefix(PREFIX) for name in tensors]


def common(config: Config, server: str) -> list[Finding]:
    """What neither vLLM nor llama.cpp has: DoRA, biases, trained rows of tokens.

    Args:
      config: with the settings of a plain LoRA (PiSSA and the like written out at twice the rank).
      server: its name.
    """
    found = []
    if config.get("use_dora"):
        found.append(Finding(what=f"{server} has no DoRA (magnitudes of weights)", remedy=MERGE))
    if config.get("lora_bias"):
        found.append(
            Finding(
                what=f"{server} has no biases of B (lora_bias)",
                remedy="where all adapted layers have biases, "
                + MERGE
                + "; else load it with PEFT, or train without b_bias",
            )
        )
    if config.get("bias", "none") != "none":
        mode = config["bias"]
        found.append(
            Finding(what=f"{server} takes no trained biases (bias={mode!r})", remedy=MERGE)
        )
    if config.get("trainable_token_indices"):
        found.append(Finding(what=f"{server} takes no trained rows of tokens", remedy=MERGE))
    return found
