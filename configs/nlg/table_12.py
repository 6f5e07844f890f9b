"""What the paper trains GPT-3 with: the data sets of Table 4, Table 12's hyperparameters, Table 15's methods.

The weights of GPT-3 are not public, so the configs that use this are of other models. The paper does not say
how it decodes GPT-3: here it is greedily. Nor does it give LoRA's alpha there: here it is the rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from configs.glue.minilm_weights import targets

# Beside the paper's three stand DialogSum, like SAMSum, and the other tasks on pairs of GLUE, like MNLI.
GLUE_TEXT = ("mrpc_text", "qqp_text", "mnli_text", "qnli_text", "rte_text", "wnli_text")
DATASETS = ("wikisql", "samsum", "dialogsum", *GLUE_TEXT)

_GREEDY = {"decode.beams": 1, "decode.length_penalty": 1.0, "decode.no_repeat_ngram": 0}
_ALL: Mapping[str, Any] = {
    **_GREEDY, "weight_decay": 0.1, "label_smoothing": 0.0, "data.train_split": "train",
}  # fmt: skip
# Length: Table 12. The longest target has 110 tokens of SmolLM2 on WikiSQL and 102 on DialogSum.
_WIKISQL = {"data.max_length": 384, "data.decode_split": "valid", "decode.max_tokens": 128}
_SUMMARY = {"data.max_length": 2048, "data.decode_split": "test", "decode.max_tokens": 128}
_CLASS = {"data.max_length": 768, "data.decode_split": "valid", "decode.max_tokens": 8}

BATCH_SIZE, EPOCHS = 128, 2
_WARMUP_TOKENS = 250_000
RATES: Mapping[str, float] = {
    "full": 5e-6, "prefix_embed": 5e-4, "prefix_layer": 1e-4, "bitfit": 1.6e-3, "adapter_h": 1e-4,
    "lora": 2e-4,  # of its combinations with prefixes the paper gives none
}  # fmt: skip


def check(dataset: str, argument: str) -> None:
    """Raises ValueError for a data set that is not of `DATASETS`; the message names these."""
    if dataset not in DATASETS:
        raise ValueError(
            f"unknown data set {dataset!r} in {argument!r}; known are {list(DATASETS)}"
        )


def of_dataset(dataset: str) -> dict[str, Any]:
    """The fields that a data set sets whatever the model, by path."""
    own = _WIKISQL if dataset == "wikisql" else _CLASS if dataset in GLUE_TEXT else _SUMMARY
    return {**_ALL, **own}


def of_method(dataset: str, method: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of Table 12: batch, epochs, learning rate, and 250,000 tokens of warm-up in updates."""
    return {
        "batch_size": BATCH_SIZE,
        "epochs": EPOCHS,
        "learning_rate": RATES[method["name"]],
        "warmup_steps": warmup_steps(dataset, BATCH_SIZE),
    }


def warmup_steps(dataset: str, batch_size: int) -> int:
    """250,000 tokens of warm-up (Tables 12 and 17) in updates, of rows that are all of Table 12's length."""
    length = of_dataset(dataset)["data.max_length"]
    return max(1, round(_WARMUP_TOKENS / (batch_size * length)))


def lora(letters: str, rank: int, fused: bool) -> dict[str, Any]:
    """LoRA on attention weights.

    Args:
      letters: of q, k, v, o.
      rank: of each of them.
      fused: whether queries, keys and values are one matrix, as in GPT-2.
    """
    return {"name": "lora", "targets": weights(letters, fused), "rank": rank}


def weights(letters: str, fused: bool) -> Any:
    """The targets that are these attention weights, see `lora`."""
    if not fused:
        return targets(letters)
    parts = tuple(letter for letter in letters if letter != "o")
    qkv = {"attention/qkv": {"parts": parts, "fused": ("q", "k", "v")}} if parts else {}
    return {**qkv, **({"attention/output": {}} if "o" in letters else {})}


def _embed(prefix: int, infix: int) -> dict[str, Any]:
    return {"name": "prefix_embed", "prefix": prefix, "infix": infix}


def _layer(prefix: int, infix: int) -> dict[str, Any]:
    return {"name": "prefix_layer", "prefix": prefix, "infix": infix}


def table_4(fused: bool) -> dict[str, dict[str, Any]]:
    """The rows of Table 4 by name: `lora` has 37.7M values in GPT-3, `lora_small` 4.7M."""
    return {
        "full": {"name": "full"},
        "bitfit": {"name": "bitfit", **({} if fused else {"add": True})},
        "prefix_embed": _embed(256, 8),
        "prefix_layer": _layer(8, 8),
        "adapter_h_small": {"name": "adapter_h", "size": 1},
        "adapter_h": {"name": "adapter_h", "size": 8},
        "lora_small": lora("v", 2, fused),
        "lora": lora("qv", 8, fused),
    }


def table_15(fused: bool) -> dict[str, dict[str, Any]]:
    """The rows of Table 15 by name, in its order."""
    rows: dict[str, dict[str, Any]] = {"full": {"name": "full"}}
    rows |= {f"prefix_embed_{n}_8": _embed(n, 8) for n in (32, 64, 128, 256, 512)}
    for prefix, infix in ((2, 2), (8, 0), (8, 8), (32, 4), (64, 0)):
        rows[f"prefix_layer_{prefix}_{infix}"] = _layer(prefix, infix)
    rows |= {f"adapter_h_{n}": {"name": "adapter_h", "size": n} for n in (1, 4, 8, 16, 64)}
    for letters, rank in (
        ("v", 2), ("qv", 1), ("qv", 2), ("qkvo", 1), ("qv", 4), ("qkvo", 2), ("qv", 8), ("qkvo", 4),
        ("qv", 64), ("qkvo", 64),
    ):  # fmt: skip
        rows[f"lora_{letters}_{rank}"] = lora(letters, rank, fused)
    for rank in (8, 32, 64):
        rows[f"lora_qv_{rank}_prefix_embed"] = {**lora("qv", rank, fused), "plus": _embed(8, 4)}
    rows["lora_qv_8_prefix_layer"] = {**lora("qv", 8, fused), "plus": _layer(8, 4)}
    return rows
