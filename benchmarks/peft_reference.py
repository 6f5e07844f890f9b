"""The peer of our benchmarks: PEFT's LoRA (r=8, alpha=16, q and v, a trained head) in PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import peft
import torch
import transformers


def adapt(
    model: transformers.PreTrainedModel, learning_rate: float, weight_decay: float
) -> tuple[peft.PeftModel, Callable[[torch.Tensor], None]]:
    """Puts LoRA onto a model of transformers.

    Args:
      model: for sequence classification.
      learning_rate, weight_decay: of AdamW.

    Returns:
      The adapted model in training mode, and `update(loss)`, which clips the gradients, takes a step of
      AdamW and clears the gradients.
    """
    lora = peft.LoraConfig(
        task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"], lora_dropout=0.0
    )
    adapted = peft.get_peft_model(model, lora).train()
    trainable = [p for p in adapted.parameters() if p.requires_grad]
    tx = torch.optim.AdamW(trainable, learning_rate, weight_decay=weight_decay)

    def update(loss: torch.Tensor) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        tx.step()
        tx.zero_grad()

    return adapted, update
