"""Fields that a command line names and the config does not have: which there are, and which was meant."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from lora_jax.errors import did_you_mean
from lora_jax.methods.registry import CONSTRUCTORS, arguments_of
from lora_jax.run_folder import flat

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)")


def unknown_field(config: ConfigDict, arguments: Sequence[str]) -> str | None:
    """What is wrong with the first argument that sets a field which is not there; None if all are.

    Args:
      config: as its file makes it.
      arguments: the command line, such as `--config.data.train=FILE`.
    """
    for argument in arguments:
        if named := _OVERRIDE.match(argument):
            at, where = config, "config"
            for part in named[1].partition("[")[0].split("."):  # seeds[0] is an item of a field
                if not isinstance(at, ConfigDict):
                    return f"{argument}: {where} is a value and has no fields"
                if part not in at:
                    return f"{argument}: {_missing(config, at, where, part)}"
                at, where = at[part], f"{where}.{part}"
    return None


def instead(config: ConfigDict, name: str) -> str:
    """The field of a config whose flag someone forgot to begin with `config.`; "" if there is none."""
    paths = flat(config.to_dict())
    found = [path for path in paths if name == path or path.endswith(f".{name}")]
    return f"--config.{found[0]}" if found else ""


def _missing(config: ConfigDict, at: ConfigDict, where: str, part: str) -> str:
    """The message for a name that a part of a config does not have."""
    guess = did_you_mean(part, [str(name) for name in at])
    if not guess and (other := instead(config, part)):
        guess = f", did you mean {other}?"
    there = f"{where} has {', '.join(sorted(map(str, at)))}"
    if where.rpartition(".")[2] == "method" and (more := _of_method(at)):
        there += f". {more}"
    return f"no field {part!r} in {where}{guess or ';'} {there}"


def _of_method(method: Mapping[str, object]) -> str:
    """Arguments of a method that its config leaves at their defaults, which no flag can set."""
    name = str(method.get("name"))
    if name not in CONSTRUCTORS:
        return ""
    others = [argument for argument in arguments_of(name) if argument not in method]
    if not others:
        return ""
    return (
        f"{name} also takes {', '.join(others)}: these need a config file of your own, in which `method` has "
        "them"
    )
