"""The parts of a fused projection: which ones there are, and how they divide its first output axis."""

from __future__ import annotations

from lora_jax.errors import InputError
from lora_jax.low_rank.settings import LoRASettings
from lora_jax.low_rank.updates import FusedUpdate


def part_sizes(settings: LoRASettings, total: int, path: str) -> tuple[int, ...]:
    """Sizes of the parts of a fused projection.

    Args:
      settings: with the names of all parts, and of the adapted ones.
      total: size of the first output axis, which they divide.
      path: of the layer, for messages.

    Raises:
      ValueError: unknown, missing or reserved names, or sizes that do not add up.
    """
    unknown = [part for part in settings.parts if part not in settings.fused]
    if unknown or not settings.parts:
        raise InputError(f"{path}: choose parts among {settings.fused}, got {settings.parts}")
    taken = [p for p in settings.parts if p in ("names", "sizes") or hasattr(FusedUpdate, p)]
    if taken:
        raise InputError(f"{path}: a part cannot be called {taken[0]!r}; choose another name")
    count = len(settings.fused)
    sizes = settings.fused_sizes or (total // count,) * count
    if len(sizes) != count or sum(sizes) != total:
        raise InputError(
            f"{path}: the parts {settings.fused} must divide the first output axis of size {total}; "
            f"got sizes {sizes}. Give `fused_sizes` if the parts are not equal"
        )
    return sizes
