"""What experiments on decoders share: validation loss and tokens that end a text."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from transformers import PreTrainedTokenizerBase

from experiments.adaptation import Adaptation
from lora_jax.data.batches import evaluation_batches
from lora_jax.data.completions import TokenisedPairs
from lora_jax.partition import Params
from lora_jax.sharding.mesh import shares
from lora_jax.training import step

_TOKENS = 1024  # of an evaluation batch: its logits have half as many rows of the vocabulary's size


def validation(
    adaptation: Adaptation, examples: TokenisedPairs, width: int, max_length: int
) -> Callable[[Params], dict[str, float]]:
    """A function that gives the mean cross-entropy per completion token, not smoothed.

    Args:
      adaptation: the model.
      examples: validation rows.
      width: of the model, for the choice of shapes.
      max_length: longest possible row.
    """
    placement = adaptation.placement
    packed = evaluation_batches(examples, width, max_length, _TOKENS, shares(placement.mesh))
    total = step.make_predict_step(
        adaptation.structure,
        lambda model, batch: jnp.sum(step.completion_losses(model, batch, None)),
        placement,
    )
    count = int((examples.lengths - examples.starts).sum())

    def evaluate(trainable: Params) -> dict[str, float]:
        sums = [
            float(total(trainable, adaptation.frozen, placement.batch(batch)))
            for _, batch in packed
        ]
        return {"loss": sum(sums) / count}

    return evaluate


def end_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The end-of-text token and, where it is one token, the empty line (GPT-2: 50256 and 628)."""
    line = tokenizer("\n\n", add_special_tokens=False)["input_ids"]
    return (tokenizer.eos_token_id, *line) if len(line) == 1 else (tokenizer.eos_token_id,)
