"""What transformers takes: `model.load_adapter(folder)`, which uses PEFT's layers without PEFT's model.

Measured with transformers 5 and PEFT 0.21.2: every feature of PEFT's LORA gives PEFT's logits but DoRA.
"""

from __future__ import annotations

from lora_jax.interop.servers.findings import MERGE, Config, Finding, Tensors


def findings(
    config: Config, tensors: Tensors, architecture: str, *, tied: bool = False
) -> list[Finding]:
    """What `load_adapter` does not take of an adapter; see `vllm.findings`."""
    found = []
    if config.get("use_dora"):
        found.append(
            Finding(
                what="load_adapter of transformers leaves DoRA's magnitudes out without a word, so that it "
                "computes something else",
                remedy=f"load it with peft.PeftModel.from_pretrained(base, folder), or {MERGE}",
            )
        )
    if config.get("modules_to_save") and config.get("task_type") == "SEQ_CLS":
        found.append(
            Finding(
                what="the adapter has a head",
                remedy="load the base with AutoModelForSequenceClassification and num_labels of the head",
                mended=True,
            )
        )
    return found
