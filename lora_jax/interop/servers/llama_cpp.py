"""What llama.cpp takes: a GGUF file with the factors, for `--lora`.

Its names, order of rows and scale are those of `src/llama-adapter.cpp` and of `convert_lora_to_gguf.py`,
which leaves rank_pattern, alpha_pattern and rsLoRA out without a word: B takes in what scales differ by here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from lora_jax.errors import InputError
from lora_jax.gguf.header import Value
from lora_jax.gguf.kinds import KINDS, NUMBERS
from lora_jax.gguf.writing import Tensor, encoded
from lora_jax.interop.servers.findings import MERGE, Config, Finding, Tensors, common
from lora_jax.interop.servers.uniform import factors, scales
from lora_jax.models.gguf_families import FAMILIES, Family, neighbours
from lora_jax.models.llama_config import LlamaConfig

TYPES: Mapping[str, str] = {"f32": "<f4", "f16": "<f2"}
_FAMILIES = {family.model_type: name for name, family in FAMILIES.items()} | {"mistral": "llama"}
_TABLE, _OUTPUT = "token_embd", "output"
_WHOLE = {"embed_tokens": _TABLE, "lm_head": _OUTPUT}


def findings(
    config: Config, tensors: Tensors, architecture: str, *, tied: bool = False
) -> list[Finding]:
    """What llama.cpp does not take of an adapter; see `vllm.findings`."""
    found = common(config, "llama.cpp")
    if architecture not in _FAMILIES:
        found.append(
            Finding(
                what=f"adapter files are written for the Llama families ({', '.join(_FAMILIES)}), not for "
                f"{architecture}",
                remedy=MERGE,
            )
        )
    if saved := config.get("modules_to_save"):
        found.append(
            Finding(
                what=f"llama.cpp's adapters have no whole modules ({', '.join(saved)})",
                remedy=MERGE,
            )
        )
    if tied and any(module.endswith(("embed_tokens", "lm_head")) for module in factors(tensors)):
        found.append(
            Finding(
                what="llama.cpp stops at the update of a table that is the output layer, too",
                remedy=MERGE
                if config.get("ensure_weight_tying")
                else "it is for lookups only, which no merged table can be: serve it with transformers",
            )
        )
    if len(set(scales(config, tensors).values())) > 1 or config.get("use_rslora"):
        found.append(
            Finding(
                what="modules have several scales, or alpha/sqrt(r); llama.cpp has one alpha, over the rank "
                "of each module",
                remedy="in the export B takes in what scales differ by",
                mended=True,
            )
        )
    return found


def adapter_file(
    config: Config, tensors: Tensors, model: LlamaConfig, type: str = "f32"
) -> Iterator[bytes | memoryview]:
    """A GGUF adapter file in pieces, see `files.write_pieces`.

    Args:
      config: of a plain LoRA without findings but mended ones.
      tensors: of the adapter.
      model: of the base.
      type: of the factors, f32 or f16.

    Raises:
      InputError: an unknown type, values too large for it, or a module that llama.cpp has not.
    """
    if type not in TYPES:
        raise InputError(f"the type of an adapter file is one of {', '.join(TYPES)}; got {type!r}")
    architecture = _FAMILIES[model.architecture]
    family, amounts = FAMILIES[architecture], scales(config, tensors)
    alpha = float(config["lora_alpha"])
    heads = (
        {"attn_q": model.num_attention_heads, "attn_k": model.shared_heads}
        if family.permuted
        else {}
    )
    metadata: dict[str, Value] = {
        "general.architecture": architecture, "general.type": "adapter", "adapter.type": "lora",
        "adapter.lora.alpha": alpha,
    }  # fmt: skip
    result: dict[str, Tensor] = {}
    for module, names in factors(tensors).items():
        name = stored_name(module, family)
        a, b = (np.asarray(tensors[names[side]], np.float32) for side in "AB")
        b = (b.astype(np.float64) * (amounts[module] / (alpha / len(a)))).astype(np.float32)
        kind = name.rpartition(".")[2]
        if kind in heads:
            b = neighbours(b, heads[kind])
        elif kind == _TABLE:  # whose columns of A are looked up
            a = np.ascontiguousarray(a.T)
        for side, values in (("a", a), ("b", b)):
            whole = f"{name}.weight.lora_{side}"
            result[whole] = _tensor(whole, values, type)
    return encoded(metadata, result)


def stored_name(module: str, family: Family) -> str:
    """llama.cpp's name of a module, such as `blk.3.attn_q`.

    Args:
      module: name in transformers, such as `model.layers.3.self_attn.q_proj`.
      family: of the model.

    Raises:
      InputError: llama.cpp has no such module.
    """
    bare = module.removeprefix("model.")
    if bare in _WHOLE:
        return _WHOLE[bare]
    layers, _, rest = bare.partition(".")
    number, _, inner = rest.partition(".")
    for theirs, ours in family.layer.items():
        if layers == "layers" and ours == inner:
            return f"blk.{number}.{theirs}"
    raise InputError(f"{module} has no counterpart in llama.cpp's {family.model_type}")


def _tensor(name: str, values: np.ndarray, type: str) -> Tensor:
    with np.errstate(over="ignore"):
        stored = values.astype(TYPES[type])
    if not np.isfinite(stored).all():
        raise InputError(f"{name} has values too large for {type}; write --type=f32")
    return Tensor(kind=KINDS[NUMBERS[type.upper()]], shape=values.shape, data=lambda: [stored])
