"""Converts: adapters from and to PEFT and loralib, and tuned models for llama.cpp and transformers.

    python -m experiments.convert to_gguf --run=DIR --output=FILE.gguf [--type=stored|f16|q8_0|...]
    python -m experiments.convert to_hugging_face --run=DIR --output=DIR [--dtype=float32|bfloat16|float16]

merge the adapter of a finished run (of experiments.tune, glue or classify) into its base; --adapter=DIR and
--model=NAME instead of --run for others; --adapters=NAME=DIR,NAME=DIR --weights=1,-0.5 for the exact weighted
sum of several; --model=NAME alone for a model as it is. A GGUF file takes metadata and tokenizer from the
base, which must be a GGUF file itself; `stored` is the types of the base's tensors. A base that was held
packed is unpacked first: what is written is a float merge, whose rounding to 16 bits is printed.
`to_hugging_face --packed=same` (or nf4, int8, ...) packs the merged matrices as bitsandbytes does, which is
another quantisation: its errors are printed. Classifiers become ...ForSequenceClassification.

    python -m experiments.convert from_peft --adapter=FOLDER --model=BASE --output=DIR [--subfolder=NAME]
    python -m experiments.convert to_peft --adapter=DIR --model=BASE --output=FOLDER

read and write adapter folders of PEFT's LORA (docs/peft.md). FOLDER may be a hub name, and without --model
the base is the one that the adapter names. Whatever has no counterpart is refused by its name;
--ignore=NAME,NAME (regular expressions) leaves out unknown keys of adapter_config.json and unknown tensors.

    python -m experiments.convert from_loralib --checkpoint=roberta_base_lora_mnli.bin --alpha=16 \\
        --model=roberta-base --output=DIR
    python -m experiments.convert to_loralib --adapter=DIR --output=FILE

A checkpoint is a state dict of RoBERTa, BERT, DeBERTa or GPT-2: a .safetensors file, or a .bin or .pt file
(these need PyTorch, which reads tensors only). It does not hold alpha: the released RoBERTa-base MNLI file
needs 16, those of GPT-2 need 32. The result is evaluated like any adapter: `python -m experiments.glue
--config=configs/glue/roberta_base_lora.py:mnli,script --config.eval_only=True --config.adapter=DIR`.

    python -m experiments.convert from_style --adapter=FILE.safetensors --model=FOLDER --output=DIR
    python -m experiments.convert to_style --adapter=DIR --model=FOLDER --output=FILE.safetensors \\
        [--form=diffusers|kohya] [--dtype=float16]

read and write the files in which styles of Stable Diffusion 1.x and 2.x are shared, by diffusers and by
kohya's scripts (docs/diffusion.md). FOLDER is the pipeline as diffusers saves it; DIR gets an adapter folder
for each model that the style adapts, `unet` and `text_encoder`.

`--model` names the base (a folder, or a hub name). Everything is checked against it, and the adapter
stores its fingerprint. Without a base the adapter can be analysed and can warm-start a run, but putting
it onto a model is refused, since nothing shows that this model is the right one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments.convert.exports import DTYPES, PACKED, to_gguf, to_hugging_face
from experiments.convert.loralib import from_loralib, to_loralib
from experiments.convert.peft import from_peft, to_peft
from experiments.convert.sources import Named
from experiments.convert.styles import FORMS, from_style, to_style
from experiments.runs import command_line, named_adapters
from lora_jax.errors import InputError
from lora_jax.models.gguf_export import STORED, TYPES


def main(arguments: Sequence[str]) -> None:
    """Runs the conversion that the first argument names."""
    with command_line.readable_errors():
        command = arguments[1] if len(arguments) == 2 else None
        if command == "from_loralib" and FLAGS.checkpoint and FLAGS.output:
            folder = from_loralib(
                Path(FLAGS.checkpoint), Path(FLAGS.output), alpha=FLAGS.alpha, model=FLAGS.model,
                dropout=FLAGS.dropout, parts=FLAGS.parts, ignore_base=FLAGS.ignore_base,
            )  # fmt: skip
            print(f"adapter: {folder}")
            if FLAGS.model is None:
                print("base unknown: give --model to put the adapter onto a model")
        elif command == "to_loralib" and FLAGS.adapter and FLAGS.output:
            settings = to_loralib(
                Path(FLAGS.adapter), Path(FLAGS.output), architecture=FLAGS.architecture,
                prefix=FLAGS.prefix,
            )  # fmt: skip
            print(f"state dict: {FLAGS.output}")
            for name, layer in settings.items():
                kind = "MergedLinear" if "enable_lora" in layer else "Linear"
                print(f"  {name}: {kind}({', '.join(f'{k}={v}' for k, v in layer.items())})")
        elif command in ("from_peft", "to_peft") and FLAGS.adapter and FLAGS.output:
            print(_of_peft(command))
        elif command in ("from_style", "to_style") and FLAGS.adapter and FLAGS.output:
            print(_of_style(command))
        elif command in ("to_gguf", "to_hugging_face") and FLAGS.output:
            for line in _exported(command):
                print(line)
        else:
            raise InputError(
                "give one of eight commands: from_peft --adapter=FOLDER --model=BASE --output=DIR, "
                "to_peft --adapter=DIR --model=BASE --output=FOLDER, from_loralib --checkpoint=FILE "
                "--alpha=NUMBER --output=DIR, to_loralib --adapter=DIR --output=FILE, to_gguf --run=DIR "
                "--output=FILE.gguf, to_hugging_face --run=DIR --output=DIR, "
                "from_style --adapter=FILE --model=FOLDER --output=DIR, or to_style --adapter=DIR "
                "--model=FOLDER --output=FILE.safetensors"
            )


def _of_peft(command: str) -> str:
    """Reads or writes an adapter folder of PEFT; what was done, in a line."""
    output = Path(FLAGS.output)
    if command == "to_peft":
        config = to_peft(Path(FLAGS.adapter), output, model=FLAGS.model)
        named = ", ".join(
            f"{key}={config.get(key)}" for key in ("r", "lora_alpha", "target_modules")
        )
        return f"adapter of PEFT: {output} ({named})"
    folder = from_peft(
        FLAGS.adapter, output, model=FLAGS.model, subfolder=FLAGS.subfolder, ignore=FLAGS.ignore
    )
    return f"adapter: {folder}"


def _of_style(command: str) -> str:
    """Reads or writes a style file; what was done, in a line."""
    output, model = Path(FLAGS.output), FLAGS.model
    if not model:
        raise InputError(f"{command}: name the folder of Stable Diffusion, --model=FOLDER")
    if command == "from_style":
        adapters = from_style(Path(FLAGS.adapter), output, model, FLAGS.ignore)
        said = ", ".join(f"{output / name} ({one.method})"[:300] for name, one in adapters.items())
        return f"adapters: {said}"
    parts = to_style(Path(FLAGS.adapter), output, model, form=FLAGS.form, dtype=FLAGS.dtype)
    return f"style in the form of {FLAGS.form}: {output} (of {' and '.join(parts)})"


def _exported(command: str) -> list[str]:
    """Merges and writes a model; what was written, in lines."""
    output = Path(FLAGS.output)
    adapters = named_adapters.named(FLAGS.adapters)
    named = Named(
        **{name: getattr(FLAGS, name) or "" for name in ("run", "adapter", "model")},
        adapters=adapters, weights=named_adapters.weights(FLAGS.weights, adapters), rest=FLAGS.rest,
    )  # fmt: skip
    if command == "to_gguf":
        return to_gguf(output, named, type=FLAGS.type)
    return to_hugging_face(output, named, dtype=FLAGS.dtype, packed=FLAGS.packed)


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("checkpoint", None, "from_loralib: the state dict to convert.")
    flags.DEFINE_string("output", None, "The folder or file to write.")
    flags.DEFINE_string("model", None, "Folder, GGUF file, package:NAME or hub name of the base.")
    flags.DEFINE_float("alpha", None, "from_loralib: lora_alpha of the run.")
    flags.DEFINE_float("dropout", 0.0, "from_loralib: lora_dropout of the run.")
    flags.DEFINE_list("parts", ["q", "v"], "from_loralib: the adapted parts of GPT-2's c_attn.")
    flags.DEFINE_boolean("ignore_base", False, "from_loralib: leave out base weights.")
    flags.DEFINE_string("adapter", None, "Adapter or run folder; from_peft: PEFT's, or a hub name.")
    flags.DEFINE_string("subfolder", "", "from_peft: folder of a second adapter in it.")
    flags.DEFINE_list("ignore", [], "from_peft: unknown keys and tensors that may be left out.")
    flags.DEFINE_string(
        "run", None, "to_gguf, to_hugging_face: folder of a run of tune, glue or classify."
    )
    flags.DEFINE_list("adapters", [], "The same: NAME=DIR of several adapters, which are added up.")
    flags.DEFINE_list("weights", [], "Of these: a number for each, or NAME=NUMBER; else 1.")
    flags.DEFINE_string("rest", None, "The one of these whose head and biases are taken.")
    flags.DEFINE_string("type", STORED, f"to_gguf: {', '.join(TYPES)}.")
    flags.DEFINE_enum("dtype", "float32", DTYPES, "to_hugging_face, to_style: type of the numbers.")
    flags.DEFINE_enum("form", FORMS[0], FORMS, "to_style: whose names the tensors have.")
    flags.DEFINE_string(
        "packed", "", f"to_hugging_face: packs the merged matrices again: {', '.join(PACKED)}."
    )
    flags.DEFINE_string("architecture", None, "to_loralib: roberta, bert, deberta-v2 or gpt2.")
    flags.DEFINE_string("prefix", "", "to_loralib: text before every key, for example module.")
    command_line.run(main)
