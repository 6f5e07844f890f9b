"""What of a model is packed, in words: adapter folders note it of their base, and messages say it."""

from __future__ import annotations

import collections

from flax import nnx

from lora_jax.quantisation.registry import name_of
from lora_jax.quantisation.weight import PackedWeight

PACKED = "packed"  # key of an adapter's notes


def packing(model: nnx.Module) -> str:
    """The packed forms of a model, adapted or not, and how many weights have each; "" if none is packed."""
    forms = collections.Counter(
        name_of(module.format)
        for _, module in nnx.iter_modules(model)
        if isinstance(module, PackedWeight)
    )
    return ", ".join(f"{count} as {form}" for form, count in sorted(forms.items()))


def noted(packed: str) -> dict[str, str]:
    """The note of an adapter whose base is packed so; none of one in floating-point numbers."""
    return {PACKED: packed} if packed else {}


def difference(there: object, here: str) -> str:
    """A sentence for the message that an adapter is of another base, on how both are packed.

    Args:
      there: what the adapter notes of its base; None of one that notes nothing, as of earlier versions.
      here: of the model, from `packing`.
    """
    if isinstance(there, str) and there == here:
        return (
            f"Both have {here} packed, so it was packed from other weights, or packed anew for its factors "
            "(LoftQ of several steps)"
        )
    same = "pack it so first (lora_jax.quantise; in a config model.base_format)"
    if isinstance(there, str):
        return f"Its base had weights packed ({there}), this model has {here or 'none'}: {same}"
    if here:
        return f"This model has weights packed ({here}), which is another base than in floating-point numbers"
    return f"If its base was packed in four to eight bits and this model is not, {same}"
