"""Methods by the name of their constructor, as configs and adapter folders name them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lora_jax.errors import InputError, InputTypeError
from lora_jax.method import Method
from lora_jax.methods.bottleneck import adapter_d, adapter_h, adapter_l, adapter_p
from lora_jax.methods.lora import lora
from lora_jax.methods.prefix import prefix_embed, prefix_layer
from lora_jax.methods.selection import bitfit, full, head_only, top_layers

CONSTRUCTORS: Mapping[str, Callable[..., Method]] = {
    "full": full,
    "head_only": head_only,
    "bitfit": bitfit,
    "top_layers": top_layers,
    "lora": lora,
    "adapter_h": adapter_h,
    "adapter_p": adapter_p,
    "adapter_l": adapter_l,
    "adapter_d": adapter_d,
    "prefix_embed": prefix_embed,
    "prefix_layer": prefix_layer,
}


def create(name: str, plus: Mapping[str, Any] | None = None, **arguments: Any) -> Method:
    """Builds a method by the name of its constructor, as configs name it.

    Args:
      name: of the constructor.
      plus: name and arguments of a second method, for a combination.
      arguments: of the constructor.

    Raises:
      ValueError: unknown name; the message lists the known ones.
      TypeError: unknown or missing arguments.
    """
    if name not in CONSTRUCTORS:
        raise InputError(f"unknown method {name!r}; known methods are {sorted(CONSTRUCTORS)}")
    known = inspect.signature(CONSTRUCTORS[name]).parameters
    unknown = sorted(set(arguments) - set(known))
    missing = [p.name for p in known.values() if p.default is p.empty and p.name not in arguments]
    if unknown or missing:
        raise InputTypeError(
            f"method {name!r} takes {list(known)}; unknown {unknown}, missing {missing}"
        )
    method = CONSTRUCTORS[name](**arguments)
    return method + create(**plus) if plus else method


def from_json(description: Sequence[Mapping[str, Any]]) -> Method:
    """The inverse of `Method.to_json`.

    Raises:
      ValueError, TypeError: unknown names, or arguments that are unknown, missing or out of range.
    """
    method = create(description[0]["name"], **description[0]["arguments"])
    for part in description[1:]:
        method = method + create(part["name"], **part["arguments"])
    return method
