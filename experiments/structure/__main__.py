"""What adapters changed in their base, and what it forgot: ranks, sizes, intruder dimensions, losses.

    python -m experiments.structure --adapters=NAME=DIR,NAME=DIR --output=DIR [--rank=8] [--text=FILE]

The folders are those of runs or adapters of one base, of any method that changes weight matrices: updates
of all kinds, full fine-tuning, FT-Top2. Methods that change none (biases, norms) have no structure, only
their forgetting. Each stands twice in the tables, as it was trained and converted to
plain LoRA of --rank (the nearest update; methods that cannot be converted say why). --text is a text that
was not trained on; forgetting is the rise of the mean loss per token on it, against the base. It needs
decoders: an encoder with a classification head has no such loss. Writes

    DIR/structure.md       the tables and figures; printed too
    DIR/matrices.csv       every number, one row per weight matrix
    DIR/structure.json     the same rows, spectra, losses and settings
    DIR/figures/*.png      spectra; intruder dimensions against forgetting

Intruder dimensions (Shuttleworth et al. 2024, arXiv 2410.21228): of the first --k singular vectors of a tuned
weight those whose largest |cosine| to a singular vector of the base's is below --epsilon.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments.runs import command_line, named_adapters
from experiments.structure import page
from experiments.structure.measuring import Settings, measure
from lora_jax.analysis.structure import EPSILON, TOP
from lora_jax.errors import InputError
from lora_jax.reading import read_text


def main(arguments: Sequence[str]) -> None:
    """Runs the analysis, and prints its page."""
    with command_line.readable_errors():
        command_line.refuse_rest(list(arguments))
        if not (FLAGS.adapters and FLAGS.output):
            raise InputError(
                "name adapters and a folder for the results: --adapters=NAME=DIR,NAME=DIR --output=DIR"
            )
        output = Path(FLAGS.output)
        page.check_place(output)
        settings = Settings(
            rank=FLAGS.rank, text=FLAGS.text, length=FLAGS.length, k=FLAGS.k, epsilon=FLAGS.epsilon,
            side=FLAGS.side, model=FLAGS.model,
        )  # fmt: skip
        measured = measure(named_adapters.named(FLAGS.adapters), settings)
        page.write(output, measured, settings)
        command_line.say(read_text(output / page.PAGE))
        command_line.say(f"written to {output}: {', '.join(page.FILES)}, figures/")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_list("adapters", [], "NAME=DIR of each adapter or run, or DIR.")
    flags.DEFINE_string("output", None, "The folder to write.")
    flags.DEFINE_integer("rank", 8, "Of the plain LoRA that every adapter is converted to.")
    flags.DEFINE_string("text", "", "A text that was not trained on; none: no forgetting.")
    flags.DEFINE_integer("length", 512, "Tokens of the pieces that the text is cut into, at most.")
    flags.DEFINE_integer("k", TOP, "Singular vectors of a tuned weight that may be intruders.")
    flags.DEFINE_float("epsilon", EPSILON, "Largest |cosine| below which a vector is an intruder.")
    flags.DEFINE_enum(
        "side", "outputs", ("outputs", "inputs"), "Of the vectors; outputs: the paper's."
    )
    flags.DEFINE_string("model", "", "Base: folder or hub name; none for the one that they name.")
    command_line.run(main)  # type: ignore[arg-type]
