"""target_modules and its relatives: which modules PEFT would adapt, and how to name a set of modules."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable

from lora_jax.expressions import Expression
from lora_jax.interop.peft.config import PeftConfig

_LAYER = re.compile(r".*?\.[^.]*\.(?P<layer>\d+)\.")


def chosen(config: PeftConfig, modules: Iterable[str]) -> set[str] | None:
    """The modules that PEFT would adapt, as its `check_target_module_exists` chooses them.

    Args:
      config: of the adapter.
      modules: names of all that could be adapted.

    Returns:
      Their names; None where only the classes of the modules show it ("all-linear", which PEFT writes
      out when it saves).
    """
    targets = config.values.get("target_modules")
    if targets == "all-linear":
        return None
    named = _named(targets, "target_modules")
    excluded = _named(config.values.get("exclude_modules"), "exclude_modules")
    saved = [
        Expression(rf"(.*\.)?{name}(\..*)?", "modules_to_save")
        for name in config.get("modules_to_save", [])
    ]
    parameters = config.get("target_parameters", [])
    found = set()
    for module in modules:
        weight = f"{module}.weight"
        if any(weight == p or weight.endswith(f".{p}") for p in parameters):
            found.add(module)
        elif excluded(module) or any(pattern.matches(module) for pattern in saved):
            continue
        elif named(module) and (isinstance(targets, str) or _in_layers(config, module)):
            found.add(module)
    return found


def _named(names: Collection[str] | str | None, kind: str) -> Callable[[str], bool]:
    """Whether a module is named by a list of ends of names, or by a regular expression."""
    if isinstance(names, str):
        return Expression(names, kind).matches
    ends = tuple(f".{name}" for name in names or ())
    return lambda module: module in (names or ()) or module.endswith(ends)


def _in_layers(config: PeftConfig, module: str) -> bool:
    layers = config.values.get("layers_to_transform")
    if layers is None or layers == []:
        return True
    patterns = config.values.get("layers_pattern") or []
    found = _LAYER.match(module)
    number = found["layer"] if found else None
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        parts = module.split(".")
        places = [
            i for i, part in enumerate(parts[:-1]) if part == pattern and parts[i + 1].isdigit()
        ]
        number = parts[places[0] + 1] if places else None
        if places:
            break
    return number is not None and int(number) in ([layers] if isinstance(layers, int) else layers)


def name_all(wanted: Collection[str], modules: Collection[str]) -> list[str]:
    """The shortest ends of names that mean a set of modules and no others.

    vLLM and others read the last names ("q_proj") only, so these come first.

    Args:
      wanted: names of modules.
      modules: names of all modules, these among them.
    """
    found: set[str] = set()
    for module in wanted:
        parts = module.split(".")
        for count in range(1, len(parts) + 1):
            end = ".".join(parts[-count:])
            if all(m in wanted for m in modules if m == end or m.endswith(f".{end}")):
                found.add(end)
                break
    return sorted(found)
