"""peft's mixed batch: `adapter_names`, one for each input of a padded batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def mixed_peft(
    name: str, ids: Sequence[np.ndarray], count: int, tokens: int
) -> Callable[[], object]:
    """A call of PyTorch `transformers` with peft, with `count` adapters in one batch.

    Args:
      name: `minilm` or `smollm2`: the shape of the model, with random weights.
      ids: tokens of every input.
      count: adapters.
      tokens: of every continuation of a decoder.
    """
    import peft
    import torch
    import transformers

    if name == "minilm":
        config: Any = transformers.BertConfig(
            hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
        )
        base: Any = transformers.BertModel(config)
        targets = ["query", "value"]
    else:
        config = transformers.LlamaConfig(
            vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
            num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=2048,
            tie_word_embeddings=True, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        base = transformers.LlamaForCausalLM(config)
        targets = ["q_proj", "v_proj"]
    lora = peft.LoraConfig(r=8, lora_alpha=16, target_modules=targets, init_lora_weights=False)
    model = peft.get_peft_model(base.eval(), lora, adapter_name="t0")
    for number in range(1, count):
        model.add_adapter(f"t{number}", lora)
    model.eval()
    length = max(map(len, ids))
    rows = torch.zeros((len(ids), length), dtype=torch.long)
    mask = torch.zeros_like(rows)
    for row, (own, values) in enumerate(zip(mask, ids, strict=True)):
        # Decoders are padded in front, so that the newest token is the last one.
        span = slice(length - len(values), None) if name == "smollm2" else slice(0, len(values))
        rows[row, span] = torch.tensor(values, dtype=torch.long)
        own[span] = 1
    names = [f"t{i % count}" for i in range(len(ids))]

    def call() -> object:
        with torch.inference_mode():
            if name == "minilm":
                return model(input_ids=rows, attention_mask=mask, adapter_names=names)
            return model.generate(
                input_ids=rows, attention_mask=mask, adapter_names=names, do_sample=False,
                max_new_tokens=tokens, min_new_tokens=tokens,
            )  # fmt: skip

    return call
