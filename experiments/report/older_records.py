"""The adapted layers of run records that do not list them, inferred from the config.

Records written before `layers` joined result.json have only the patterns of the config. They are matched
here against the paths of the models in this repository, whose layers are stacked in one module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.report.adapted_layers import FUSED, LETTERS, AdaptedLayer
from lora_jax.expressions import Expression
from lora_jax.low_rank.targets import by_target

_BLOCK = "layers/block"
_FEED_FORWARD = (f"{_BLOCK}/feed_forward/up", f"{_BLOCK}/feed_forward/down")
_DECODER = (
    f"{_BLOCK}/attention/{FUSED}",
    f"{_BLOCK}/attention/output",
    *_FEED_FORWARD,
    "embeddings/token",
    "embeddings/position",
)
_ENCODER = (
    *(f"encoder/{_BLOCK}/attention/{name}" for name in LETTERS),
    *(f"encoder/{path}" for path in _FEED_FORWARD),
    "encoder/embeddings/word",
    "encoder/embeddings/position",
    "encoder/embeddings/token_type",
    "head/dense",
    "head/output",
)
_DEFAULT_RANK = 8


def layers_of_config(method: Mapping[str, Any], *, is_decoder: bool) -> list[AdaptedLayer]:
    """The layers that the targets of a LoRA config match; empty if it names no targets.

    A pattern that matches nothing known here (a run would have refused it) still counts, as a layer of
    that name, so that its rank is seen.

    Args:
      method: the config's `method`.
      is_decoder: whether the model is a GPT-2 with its fused projection; else it is an encoder.
    """
    targets = method.get("targets")
    if method.get("name") != "lora" or not targets:
        return []
    layers = []
    for pattern, overrides in by_target(targets).items():
        arguments = {**method, **overrides}
        rank, parts = arguments.get("rank", _DEFAULT_RANK), tuple(arguments.get("parts") or ())
        paths = _DECODER if is_decoder else _ENCODER
        matched = Expression(pattern, "target").among(paths)
        for path in matched or [pattern]:
            fused = path.endswith(f"/attention/{FUSED}")
            layers.append(AdaptedLayer(path, rank, parts if fused else ()))
    return layers
