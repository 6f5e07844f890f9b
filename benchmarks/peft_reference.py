"""The peer of our benchmarks: PEFT's LoRA in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import peft
import torch
import transformers


def adapt(
    model: transformers.PreTrainedModel,
    learning_rate: float,
    weight_decay: float,
    *,
    task: str = "SEQ_CLS",
    targets: Sequence[str] = ("query", "value"),
    rank: int = 8,
    alpha: float = 16,
) -> tuple[peft.PeftModel, Callable[[torch.Tensor], None]]:
    """Puts LoRA onto a model of transformers.

    Args:
      model: for sequence classification, whose head trains too, or another task.
      learning_rate, weight_decay: of AdamW.
      task: of PEFT's names.
      targets: names of the layers.
      rank, alpha: of the update.

    Returns:
      The adapted model in training mode, and `update(loss)`, which clips the gradients, takes a step of
      AdamW and clears the gradients.
    """
    lora = peft.LoraConfig(
        task_type=task, r=rank, lora_alpha=alpha, target_modules=list(targets), lora_dropout=0.0
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
