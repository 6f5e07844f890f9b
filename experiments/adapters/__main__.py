"""Adapter folders: what is there, whether it is whole, how adapters differ; several as one.

    python -m experiments.adapters list DIR [DIR ...]       all adapters at and below the folders
    python -m experiments.adapters check DIR [DIR ...]      the same, fails if one is damaged
    python -m experiments.adapters show DIR                 every update: rank, norm, spectrum
    python -m experiments.adapters compare DIR DIR          a line of each; norms and cosines of every update
    python -m experiments.adapters combine --adapters=NAME=DIR,NAME=DIR --weights=1,-0.5 --output=DIR \\
        [--by=cat|linear|svd|ties|dare_linear|... --rank=R --energy=E --density=D --rest=NAME]
    python -m experiments.adapters reduce --adapters=DIR --output=DIR (--rank=R | --energy=0.9)

    python -m experiments.adapters profile DIR [--model=BASE]       which servers take it, what would change
    python -m experiments.adapters export DIR --server=peft|transformers|vllm|llama.cpp --output=PLACE \\
        [--model=BASE --rank=R --type=f32|f16]
    python -m experiments.adapters import FOLDER --output=DIR [--model=BASE --subfolder=NAME --ignore=NAME]

`combine` needs adapters of one base. `cat` is the exact weighted sum, whose rank is the sum of ranks; the
others are PEFT's, see lora_jax/combination. Heads and biases are not added up: `--rest` names the adapter
whose ones the result has. The distance from the exact sum is printed for every update. `export` writes an
adapter in the form of a program that serves it (for vLLM one rank and scale for all layers, for llama.cpp a
GGUF file), with the same logits, or says why it cannot; `import` reads a folder of PEFT (docs/peft.md).
Merged models: `python -m experiments.convert`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments.adapters import combining, listing
from experiments.convert import servers
from experiments.convert.peft import from_peft
from experiments.runs import command_line, named_adapters
from lora_jax.adapters import load_adapter
from lora_jax.combination import WAYS
from lora_jax.errors import InputError
from lora_jax.interop.servers.llama_cpp import TYPES

_USAGE = (
    "give one of nine commands: list DIR ..., check DIR ..., show DIR, compare DIR DIR, combine "
    "--adapters=NAME=DIR,... --output=DIR, reduce --adapters=DIR --output=DIR --rank=R, profile DIR, "
    "export DIR --server=NAME --output=PLACE, or import FOLDER --output=DIR"
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
            if command == "check":
                print("all are whole")
        elif command == "show" and len(places) == 1:
            print(listing.updates(load_adapter(places[0])))
        elif command == "compare" and len(places) == 2:
            print(listing.listed([Path(place) for place in places])[0])
            print()
            print(listing.compared(*map(load_adapter, places)))
        elif command == "profile" and len(places) == 1:
            print("\n".join(servers.profile(Path(places[0]), FLAGS.model)))
        elif command in ("export", "import") and len(places) == 1 and FLAGS.output:
            print("\n".join(_converted(command, places[0])))
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


def _converted(command: str, place: str) -> list[str]:
    output = Path(FLAGS.output)
    if command == "export":
        return servers.export(
            Path(place), output, FLAGS.server, model=FLAGS.model, rank=FLAGS.rank, type=FLAGS.type
        )
    folder = from_peft(
        place, output, model=FLAGS.model, subfolder=FLAGS.subfolder, ignore=FLAGS.ignore
    )
    return [f"adapter: {folder}"]


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_list("adapters", [], "NAME=DIR of each adapter, or DIR.")
    flags.DEFINE_list("weights", [], "combine: a number for each adapter, or NAME=NUMBER; else 1.")
    flags.DEFINE_string("output", None, "The folder to write.")
    flags.DEFINE_enum("by", "cat", WAYS, "combine: how.")
    flags.DEFINE_integer("rank", None, "Of an SVD's result; export: factors are padded to it.")
    flags.DEFINE_float("energy", None, "Instead of a rank: share of the squared norm that is kept.")
    flags.DEFINE_float("density", None, "Pruning: share of the values that is kept.")
    flags.DEFINE_enum("signs", "total", ("total", "frequency"), "TIES: how signs are elected.")
    flags.DEFINE_integer("seed", 0, "DARE: seed.")
    flags.DEFINE_string("rest", None, "combine: the adapter whose heads and biases are kept.")
    flags.DEFINE_string("model", None, "Base: folder or hub name; None for the one that it names.")
    flags.DEFINE_enum("server", servers.PEFT, servers.TARGETS, "export: for which program.")
    flags.DEFINE_enum("type", "f32", tuple(TYPES), "export for llama.cpp: type of the factors.")
    flags.DEFINE_string("subfolder", "", "import: folder of a second adapter in it.")
    flags.DEFINE_list("ignore", [], "import: unknown keys and tensors that may be left out.")
    command_line.run(main)
