"""Adapter folders: what is there, whether it is whole, how adapters differ; several as one.

    python -m experiments.adapters list DIR [DIR ...]       all adapters at and below the folders
    python -m experiments.adapters check DIR [DIR ...]      the same, fails if one is damaged
    python -m experiments.adapters show DIR                 every update: rank, norm, spectrum
    python -m experiments.adapters compare DIR DIR          norms and cosines, update by update
    python -m experiments.adapters combine --adapters=NAME=DIR,NAME=DIR --weights=1,-0.5 --output=DIR \\
        [--by=cat|linear|svd|ties|dare_linear|... --rank=R --energy=E --density=D --rest=NAME]
    python -m experiments.adapters reduce --adapters=DIR --output=DIR (--rank=R | --energy=0.9)

`combine` needs adapters of one base. `cat` is the exact weighted sum, whose rank is the sum of ranks; the
others are PEFT's, see lora_jax/combination. Heads and biases are not added up: `--rest` names the adapter
whose ones the result has. The distance from the exact sum is printed for every update. To convert adapters
from and to other programs: `python -m experiments.convert`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from experiments.adapters import combining, listing
from experiments.runs import command_line, named_adapters
from lora_jax.adapters import load_adapter
from lora_jax.combination import WAYS
from lora_jax.errors import InputError

_USAGE = (
    "give one of six commands: list DIR ..., check DIR ..., show DIR, compare DIR DIR, combine "
    "--adapters=NAME=DIR,... --output=DIR, or reduce --adapters=DIR --output=DIR --rank=R"
)


def main(arguments: Sequence[str]) -> None:
    """Runs the command that the first argument names."""
    command, *places = arguments[1:] or [""]
    with command_line.readable_errors():
        if command in ("list", "check") and places:
            text, errors = listing.listed(listing.found(places))
            print(text)
            for error in errors:
                print(f"error: {error}", file=sys.stderr)
            if errors and command == "check":
                sys.exit(1)
        elif command == "show" and len(places) == 1:
            print(listing.updates(load_adapter(places[0])))
        elif command == "compare" and len(places) == 2:
            print(listing.compared(*map(load_adapter, places)))
        elif command in ("combine", "reduce") and FLAGS.adapters and FLAGS.output and not places:
            print("\n".join(_made(command)))
        else:
            raise InputError(_USAGE)


def _made(command: str) -> list[str]:
    adapters = named_adapters.named(FLAGS.adapters)
    output, sizes = Path(FLAGS.output), {"rank": FLAGS.rank, "energy": FLAGS.energy}
    if command == "combine":
        return combining.combined(
            adapters, named_adapters.weights(FLAGS.weights, adapters), output, by=FLAGS.by,
            density=FLAGS.density, signs=FLAGS.signs, seed=FLAGS.seed, rest=FLAGS.rest, **sizes,
        )  # fmt: skip
    if len(adapters) > 1:
        raise InputError("reduce takes one adapter; combine takes several")
    (adapter,) = adapters.values()
    return combining.reduced(adapter, output, **sizes)


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_list("adapters", [], "NAME=DIR of each adapter, or DIR.")
    flags.DEFINE_list("weights", [], "combine: a number for each adapter, or NAME=NUMBER; else 1.")
    flags.DEFINE_string("output", None, "The folder to write.")
    flags.DEFINE_enum("by", "cat", WAYS, "combine: how.")
    flags.DEFINE_integer("rank", None, "Rank of the result, where an SVD makes it.")
    flags.DEFINE_float("energy", None, "Instead of a rank: share of the squared norm that is kept.")
    flags.DEFINE_float("density", None, "Pruning: share of the values that is kept.")
    flags.DEFINE_enum("signs", "total", ("total", "frequency"), "TIES: how signs are elected.")
    flags.DEFINE_integer("seed", 0, "DARE: seed.")
    flags.DEFINE_string("rest", None, "combine: the adapter whose heads and biases are kept.")
    app.run(main, flags_parser=command_line.parse_flags)
