"""Methods by the name of their constructor, as configs and adapter folders name them."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lora_jax.errors import InputError, InputTypeError, brief, did_you_mean
from lora_jax.method import Method
from lora_jax.methods.adalora import adalora
from lora_jax.methods.bottleneck import adapter_d, adapter_h, adapter_l, adapter_p
from lora_jax.methods.ia3 import ia3
from lora_jax.methods.loha import loha
from lora_jax.methods.lokr import lokr
from lora_jax.methods.lora import lora
from lora_jax.methods.norms import norms
from lora_jax.methods.prefix import prefix_embed, prefix_layer
from lora_jax.methods.selection import bitfit, full, head_only, leaves, top_layers
from lora_jax.methods.token_rows import token_rows
from lora_jax.methods.vera import vera

MOST_PARTS = 100  # of a combined method
CONSTRUCTORS: Mapping[str, Callable[..., Method]] = {
    "full": full,
    "head_only": head_only,
    "leaves": leaves,
    "bitfit": bitfit,
    "top_layers": top_layers,
    "norms": norms,
    "lora": lora,
    "ia3": ia3,
    "loha": loha,
    "lokr": lokr,
    "vera": vera,
    "adalora": adalora,
    "adapter_h": adapter_h,
    "adapter_p": adapter_p,
    "adapter_l": adapter_l,
    "adapter_d": adapter_d,
    "prefix_embed": prefix_embed,
    "prefix_layer": prefix_layer,
    "token_rows": token_rows,
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
    if not isinstance(name, str) or name not in CONSTRUCTORS:
        guess = did_you_mean(name, CONSTRUCTORS) if isinstance(name, str) else ""
        raise InputError(
            f"unknown method {brief(name)}; known methods are {sorted(CONSTRUCTORS)}{guess}"
        )
    known = inspect.signature(CONSTRUCTORS[name]).parameters
    unknown = sorted(set(arguments) - set(known))
    missing = [p.name for p in known.values() if p.default is p.empty and p.name not in arguments]
    if unknown or missing:
        guess = did_you_mean(str(unknown[0]), known) if unknown else ""
        raise InputTypeError(
            f"method {name!r} takes {list(known)}; unknown {brief(unknown)}, missing {missing}{guess}"
        )
    method = CONSTRUCTORS[name](**arguments)
    if not plus:
        return method
    if not isinstance(plus, Mapping) or "name" not in plus or not all(map(_is_text, plus)):
        raise InputError(f"plus must hold the `name` of a method and arguments, got {brief(plus)}")
    return method + create(**plus)


def arguments_of(name: str) -> tuple[str, ...]:
    """Names of the arguments of a method's constructor, a key of `CONSTRUCTORS`."""
    return tuple(inspect.signature(CONSTRUCTORS[name]).parameters)


def from_json(description: Sequence[Mapping[str, Any]]) -> Method:
    """The inverse of `Method.to_json`.

    Raises:
      ValueError, TypeError: unknown names, or arguments that are unknown, missing or out of range.
    """
    if not isinstance(description, list | tuple) or not 0 < len(description) <= MOST_PARTS:
        raise InputError(f"a method is a list of 1 to {MOST_PARTS} parts, got {brief(description)}")
    return functools.reduce(operator.add, map(_part_from_json, description))


def _part_from_json(part: Mapping[str, Any]) -> Method:
    if not isinstance(part, Mapping) or set(part) != {"name", "arguments"}:
        raise InputError(f"a part of a method has `name` and `arguments`, got {brief(part)}")
    arguments = part["arguments"]
    if not isinstance(arguments, Mapping) or not all(map(_is_text, arguments)):
        raise InputError(f"arguments of a method have names, got {brief(arguments)}")
    if taken := sorted({"name", "plus"} & set(arguments)):
        raise InputError(f"a method has no argument {taken[0]!r}")
    return create(part["name"], **arguments)


def _is_text(value: object) -> bool:
    return isinstance(value, str)
