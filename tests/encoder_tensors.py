"""Encoders of transformers for the tests: their tensors as our arrays, and random values for them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch


def to_ours(
    named: dict[str, torch.Tensor], names: Sequence[tuple[str, str]]
) -> dict[str, np.ndarray]:
    """Torch tensors by torch name, as arrays by our path: stacked and transposed.

    Args:
      named: tensors by transformers' names.
      names: patterns of modules below the model's prefix, and our paths.
    """
    groups: dict[str, dict[int, np.ndarray]] = {}
    for name, tensor in named.items():
        module, _, leaf = re.sub(
            r"^(bert|roberta|deberta|electra|distilbert)\.", "", name
        ).rpartition(".")
        [path] = [re.sub(p, ours, module) for p, ours in names if re.fullmatch(p, module)]
        value = tensor.detach().numpy()
        if leaf == "weight":
            table = module.endswith("embeddings")
            leaf = "embedding" if table else "scale" if value.ndim == 1 else "kernel"
            value = value.T if leaf == "kernel" else value
        layer = re.search(r"layer\.(\d+)\.", module)
        groups.setdefault(f"{path}/{leaf}", {})[int(layer[1]) if layer else -1] = value
    return {
        path: parts[-1] if -1 in parts else np.stack([parts[i] for i in range(len(parts))])
        for path, parts in groups.items()
    }


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Random values everywhere, biases and norms too, large enough that attention is not flat."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(0, 0.2, generator=generator)
            if name.endswith("LayerNorm.weight"):
                p.add_(1)
