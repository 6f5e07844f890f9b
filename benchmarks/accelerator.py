"""What a GPU or a TPU computes, how fast and in how much memory: one script for ten minutes with one.

    python -m benchmarks.accelerator [--minutes=10] [--size=full|small] [--only=NAME,...]
        [--output=FILE.json] [--programs=FOLDER] [--seconds=5]

On a machine with a GPU (CUDA 12; jax[cuda13] for 13), or on a TPU VM, which must reach a mirror of packages:

    pip install -e ".[training]" "jax[cuda12]"
    pip install -e ".[training]" "jax[tpu]"

Nothing else is needed and nothing is fetched: no PyTorch, no data, no model, no hub. Weights and tokens are
random, made there. On a machine that reaches nothing there must be this repository, in whose root it is run,
and Python 3.11 or later with jax and its plugin for the device, flax, optax, numpy, safetensors, jaxtyping,
regex, orbax-checkpoint, tensorboardX, tqdm, filelock and absl-py, in the versions that pyproject.toml names.
See that everything runs before the day, with tiny models and the same code, in a few minutes:

    JAX_PLATFORMS=cpu python -m benchmarks.accelerator --size=small

Parts, in the order of their value: `device` (what it is, its speed of plain products and copies), `attention`
(every kernel against XLA's in float32, and its time), `gradients` (bfloat16 against float32); train steps:
`llama-3-8b-lora` at 4,096 tokens, `roberta-large-lora`, `roberta-large-full`, `gpt2-medium-lora`,
`gpt2-medium-full`, `llama-2-7b-qlora`; `eight-runs` of a sweep in one program against one; a `pool` of 8
adapters against merged models; `meshes` of one device and of all; `llama-3-8b-full`. Of a step: time,
tokens/s, MFU, and peak memory beside the compiler's prediction. Where its batch does not fit, a smaller one
is taken, or one that recomputes.

Each part has a process of its own: its peak of memory is its own, and an error or a lack of memory ends that
part only. The JSON is written again and again, and holds everything until then however the script ends. A
part is not begun when less than its estimate is left, and one that hangs is stopped. Compiled programs are
kept in a folder for a second try, whose compile seconds are those of reading them (`compiled_before` is not
0 then).
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import jax
from absl import app, flags

from benchmarks.accelerator_parts.catalogue import PARTS, Part
from benchmarks.accelerator_parts.record import REACHED, Record, set_aside
from benchmarks.accelerator_parts.stopping import stoppable
from benchmarks.accelerator_parts.table import table
from lora_jax.files import check_output

_MINUTES = flags.DEFINE_float("minutes", 10, "Time for everything.", lower_bound=0.1)
_SIZE = flags.DEFINE_enum("size", "full", ["full", "small"], "Of the models; small ones for CPUs.")
_ONLY = flags.DEFINE_list("only", [], "Names of parts; none: all. `device` always runs.")
_OUTPUT = flags.DEFINE_string(
    "output",
    "",
    "JSON file; by default accelerator.json, or accelerator_small.json of small models.",
)
_SECONDS = flags.DEFINE_float(
    "seconds", 0, "For every timed loop; 0: 5, or 0.2 of small models.", lower_bound=0
)
_PROGRAMS = flags.DEFINE_string(
    "programs",
    str(Path(tempfile.gettempdir()) / "lora_jax_accelerator_programs"),
    "Folder for compiled programs; empty for none.",
)


def chosen(names: list[str], small: bool) -> list[Part]:
    """The parts of these names, in their order; those of small models take seconds.

    Raises:
      ValueError: there is no part of a name.
    """
    known = {part.name: part for part in PARTS}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"--only: no part {unknown[0]!r}; they are {', '.join(known)}")
    kept = [part for part in PARTS if not names or part is PARTS[0] or part.name in names]
    return [part._replace(estimate=2.0) for part in kept] if small else kept


def main(_: list[str]) -> None:
    """Runs the parts and prints the table."""
    # The parts have the accelerator, one after the other; this process must not hold it.
    jax.config.update("jax_platforms", "cpu")
    small = _SIZE.value == "small"
    output = Path(_OUTPUT.value or ("accelerator_small.json" if small else "accelerator.json"))
    try:
        if not math.isfinite(_MINUTES.value + _SECONDS.value):
            raise ValueError("--minutes and --seconds must be finite numbers")
        parts = chosen(_ONLY.value, small)
        check_output(output, flag="--output")
        if (moved := set_aside(output)) is not None:
            print(f"the record that was at {output} is now {moved}", flush=True)
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    with stoppable():
        record = Record(
            output, _SIZE.value, _MINUTES.value, _SECONDS.value or (0.2 if small else 5.0),
            _PROGRAMS.value and str(Path(_PROGRAMS.value) / _SIZE.value),
        )  # fmt: skip
        record.run(parts)
    print(table(record.content), flush=True)
    statuses = {part["status"] for part in record.content["parts"].values()}
    if not record.content["ended"].startswith(REACHED) or "failed" in statuses:
        raise SystemExit(1)


if __name__ == "__main__":
    app.run(main)
