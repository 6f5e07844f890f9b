"""What vLLM takes: the rules of `vllm/lora` (PEFTHelper, LoRAConfig, LoRAModel), read in version 0.33.0."""

from __future__ import annotations

from lora_jax.errors import InputError
from lora_jax.interop.servers.findings import MERGE, Config, Finding, Tensors, common, plain_names
from lora_jax.interop.servers.uniform import factors, is_uniform

MAX_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # values of --max-lora-rank
_DEFAULT = 16
# Its model classes that implement SupportsLoRA, of the architectures here; and those that have
# `embedding_modules`, which lets tables have updates.
_MODELS = ("bert", "roberta", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")
_TABLES = ("llama", "qwen3")
_HEADS = ("classifier", "score")


def findings(
    config: Config, tensors: Tensors, architecture: str, *, tied: bool = False
) -> list[Finding]:
    """What vLLM does not take of an adapter.

    Args:
      config: of a plain LoRA.
      tensors: of the adapter.
      architecture: of its base, a model_type of transformers.
      tied: whether the base's table is its output layer, too.
    """
    found = common(config, "vLLM")
    if architecture not in _MODELS:
        found.append(Finding(what=f"vLLM has no LoRA for {architecture} models", remedy=MERGE))
    found += _of_heads(config, tensors)
    tables = [m for m in factors(tensors) if m.endswith(("embed_tokens", "lm_head", "embeddings"))]
    if tables and architecture not in _TABLES:
        found.append(
            Finding(
                what=f"vLLM has no updates of tables ({tables[0]}) for {architecture} models",
                remedy=MERGE,
            )
        )
    if not is_uniform(config, tensors):
        found.append(
            Finding(
                what="modules have several ranks or scales, or alpha/sqrt(r); versions of vLLM that do not "
                "read rank_pattern and alpha_pattern take r and lora_alpha for all, without a word",
                remedy="the export pads all factors to one rank, and B takes in what scales differ by",
                mended=True,
            )
        )
    return [*found, *_of_rank(config, tensors)]


def _of_heads(config: Config, tensors: Tensors) -> list[Finding]:
    saved = config.get("modules_to_save") or []
    if not saved:
        return []
    odd = [name for name in saved if name not in _HEADS]
    inner = [n for n in plain_names(tensors) if n.startswith(_HEADS) and n.count(".") > 1]
    if odd or inner:
        what = (
            f"vLLM takes no trained modules but one linear head ({', '.join([*odd, *inner][:3])})"
        )
        return [Finding(what=what, remedy=MERGE)]
    return [
        Finding(
            what=f"versions of vLLM before heads of classifiers were read refuse modules_to_save={saved}",
            remedy="take vLLM 0.33 or later, or " + MERGE,
            mended=True,
        )
    ]


def _of_rank(config: Config, tensors: Tensors) -> list[Finding]:
    """What --max-lora-rank must be: its default is 16."""
    rank = max(len(tensors[names["A"]]) for names in factors(tensors).values())
    if rank > MAX_RANKS[-1]:
        return [
            Finding(
                what=f"rank {rank} is more than vLLM's largest, {MAX_RANKS[-1]}",
                remedy=f"python -m experiments.adapters reduce --rank={MAX_RANKS[-1]}",
            )
        ]
    if rank <= _DEFAULT:
        return []
    return [
        Finding(
            what=f"rank {rank} is more than vLLM's default, {_DEFAULT}",
            remedy=f"start it with --max-lora-rank={max_rank(rank)}",
            mended=True,
        )
    ]


def max_rank(rank: int) -> int:
    """The smallest --max-lora-rank that takes a rank, which is at most 512.

    Raises:
      InputError: a larger one.
    """
    found = next((most for most in MAX_RANKS if most >= rank), None)
    if found is None:
        raise InputError(f"rank {rank} is more than vLLM's largest, {MAX_RANKS[-1]}")
    return found
