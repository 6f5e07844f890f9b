"""The peer: PEFT's LoRA (r=8, alpha=16, q and v, trained head) on a transformers model, one update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import torch


def adapt(
    model: Any, learning_rate: float, weight_decay: float
) -> tuple[Any, Callable[[torch.Tensor], None]]:
    """Returns the adapted model in training mode, and `update(loss)`: clip, AdamW, zero."""
    lora = peft.LoraConfig(
        task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"], lora_dropout=0.0
    )
    model = peft.get_peft_model(model, lora).train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    tx = torch.optim.AdamW(trainable, learning_rate, weight_decay=weight_decay)

    def update(loss: torch.Tensor) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        tx.step()
        tx.zero_grad()

    return model, update
