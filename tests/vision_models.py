"""Small random classifiers of pictures as transformers makes them, and their tensors as our arrays."""

from __future__ import annotations

import re

import jax
import numpy as np
import torch
import transformers

from lora_jax.models.vision import files

VARIANTS = {
    "vit": {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20,
            "image_size": 8, "patch_size": 4},
    "vit without biases": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
                           "intermediate_size": 12, "image_size": 9, "patch_size": 3, "qkv_bias": False},
    "basic": {"embedding_size": 6, "hidden_sizes": [6, 10], "depths": [1, 2], "layer_type": "basic"},
    "bottleneck": {"embedding_size": 6, "hidden_sizes": [8, 12], "depths": [2, 1]},
    "early": {"embedding_size": 4, "hidden_sizes": [8], "depths": [1], "downsample_in_bottleneck": True,
              "downsample_in_first_stage": True},
}  # fmt: skip
# transformers' names, and our paths; written out again, so that it checks the layouts.
_LAYER, _BLOCK = r"vit\.layers\.\d+\.", "layers/block/"
_BLOCKS = r"resnet\.encoder\.stages\.(\d)\.layers\.(\d)\."
_NAMES = (
    (r"vit\.embeddings\.cls_token", "embeddings/class_token"),
    (r"vit\.embeddings\.position_embeddings", "embeddings/position"),
    (r"vit\.embeddings\.patch_embeddings\.projection", "embeddings/patch"),
    (_LAYER + r"layernorm_before", _BLOCK + "attention/norm"),
    (_LAYER + r"attention\.q_proj", _BLOCK + "attention/query"),
    (_LAYER + r"attention\.k_proj", _BLOCK + "attention/key"),
    (_LAYER + r"attention\.v_proj", _BLOCK + "attention/value"),
    (_LAYER + r"attention\.o_proj", _BLOCK + "attention/output"),
    (_LAYER + r"layernorm_after", _BLOCK + "feed_forward/norm"),
    (_LAYER + r"mlp\.fc1", _BLOCK + "feed_forward/up"),
    (_LAYER + r"mlp\.fc2", _BLOCK + "feed_forward/down"),
    (r"vit\.layernorm", "norm"),
    (r"resnet\.embedder\.embedder\.convolution", "stem/conv"),
    (r"resnet\.embedder\.embedder\.normalization", "stem/norm"),
    (_BLOCKS + r"layer\.(\d)\.convolution", r"stages/\1/blocks/\2/convs/\3/conv"),
    (_BLOCKS + r"layer\.(\d)\.normalization", r"stages/\1/blocks/\2/convs/\3/norm"),
    (_BLOCKS + r"shortcut\.convolution", r"stages/\1/blocks/\2/shortcut/conv"),
    (_BLOCKS + r"shortcut\.normalization", r"stages/\1/blocks/\2/shortcut/norm"),
    (r"classifier(\.1)?", "head/output"),
)  # fmt: skip
_LEAVES = {"running_mean": "mean", "running_var": "var", "bias": "bias"}


def reference(variant: str, seed: int = 0):
    """transformers' classifier in evaluation mode, with random values everywhere."""
    sizes = {**VARIANTS[variant], "num_labels": 3}
    if variant.startswith("vit"):
        model = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes))
    else:
        model = transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if not value.is_floating_point():
                continue
            value.normal_(0, 0.3, generator=generator)
            if "norm" in name and name.endswith("weight"):
                value.add_(1)
            if name.endswith("running_var"):
                value.abs_().add_(0.5)
    return model.eval()


def to_ours(named) -> dict[str, np.ndarray]:
    """Tensors by transformers' names as arrays by our paths."""
    groups: dict[str, list[np.ndarray]] = {}
    for name, tensor in named.items():
        if name.endswith("num_batches_tracked"):
            continue
        value = tensor.detach().numpy()
        whole = [re.sub(p, ours, name) for p, ours in _NAMES if re.fullmatch(p, name)]
        module, _, leaf = name.rpartition(".")
        if not whole:
            [path] = [re.sub(p, ours, module) for p, ours in _NAMES if re.fullmatch(p, module)]
            ours = _LEAVES.get(leaf) or ("scale" if value.ndim == 1 else "kernel")
            # (out, in, height, width) in PyTorch
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
            whole = [f"{path}/{ours}"]
        groups.setdefault(whole[0], []).append(value)
    return {
        path: np.stack(parts) if path.startswith("layers/") else parts[0]
        for path, parts in groups.items()
    }


def load(folder, **overrides):
    """Our model of a folder, with the head in it."""
    config = files.read_config(folder, **overrides)
    return files.load(folder, config, 3, jax.random.key(0), head="published")


def pictures(count: int = 5, size: int = 8, seed: int = 0) -> np.ndarray:
    """Random pictures (n, size, size, 3)."""
    shape = (count, size, size, 3)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def for_torch(images: np.ndarray) -> torch.Tensor:
    """Pictures with the channels in front."""
    return torch.tensor(images.transpose(0, 3, 1, 2).copy())
