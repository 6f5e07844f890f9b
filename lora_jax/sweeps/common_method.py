"""One method with room for many: runs whose LoRA differs in numbers only share its structure.

Rank, alpha, scaling, initial values and dropout are numbers of a run. The common method has, for
every target, the largest rank; a smaller one is padded with zeros (see `padding`), and alpha/r comes
from outside (see `runs`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from lora_jax import methods
from lora_jax.errors import InputError
from lora_jax.files import to_json
from lora_jax.low_rank.settings import STARTS
from lora_jax.method import Method

# Of a LoRA target; everything else about it is the structure of the program.
NUMBERS = ("rank", "alpha", "scaling", "init", "std", "dropout")


def structure_of(method: Method) -> str:
    """What methods must have in common for their runs to be one program, as text."""
    spec = copy.deepcopy(method.to_json())
    for target in _targets(spec):
        for name in NUMBERS if _is_plain(target) else ():
            del target[name]
    return to_json(spec, indent=None)


def common_method(members: Sequence[Method]) -> Method:
    """A method with the structure of all members and, for every target, the largest of their ranks.

    Its scale is 1 and it has no dropout: both are values of the runs.

    Raises:
      ValueError: no members, or members of different structures.
    """
    if not members:
        raise InputError("no methods: a program needs at least one run")
    if len({structure_of(method) for method in members}) > 1:
        shown = "\n  ".join(dict.fromkeys(map(str, members)))
        raise InputError(
            f"these methods cannot be one program, they insert other things:\n  {shown}"
        )
    spec = copy.deepcopy(members[0].to_json())
    every = [_targets(method.to_json()) for method in members]
    for index, target in enumerate(_targets(spec)):
        if not _is_plain(target):
            continue
        rank = max(targets[index]["rank"] for targets in every)
        target |= {"rank": rank, "alpha": rank, "scaling": "alpha/r", "dropout": 0.0}
    return methods.from_json(spec)


def largest_rank(method: Method) -> int:
    """Of its LoRA targets; 0 without any."""
    return max((target["rank"] for target in _targets(method.to_json())), default=0)


def _is_plain(target: Mapping[str, Any]) -> bool:
    """Whether rank, scale and start are but numbers; where A and B have a start, they make the program."""
    return target["init"] not in STARTS and target.get("gradient", "plain") == "plain"


def _targets(spec: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The settings of every LoRA target of a method's description, to be read or changed."""
    return [
        target
        for part in spec
        if part["name"] == "lora"
        for target in part["arguments"]["targets"].values()
    ]
