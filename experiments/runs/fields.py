"""All fields of the configs, with what each may be: checked before a folder is claimed or data are read.

`docs/settings.md` is made from these tables and that of methods (`python -m experiments.settings`).
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from ml_collections import ConfigDict

from experiments.runs.diffusion_fields import MODEL_FIELDS, STYLE_FIELDS
from experiments.runs.field import Field, Fields
from experiments.runs.options import check_together
from experiments.runs.tune_fields import TUNE_FIELDS
from lora_jax.data.data_to_text import DATA_TO_TEXT as DATA_TO_TEXT_CORPORA
from lora_jax.data.data_to_text import DATASETS, SPLITS
from lora_jax.data.glue_tasks import TASKS
from lora_jax.errors import InputError, did_you_mean
from lora_jax.metrics.classification import CLASSES
from lora_jax.models.attention.attend import KERNELS
from lora_jax.models.parts import BASE_FORMATS
from lora_jax.quantisation.registry import FORMATS
from lora_jax.ranges import (
    DROPOUT,
    SEED,
    Flag,
    Number,
    OneOf,
    OrNone,
    Several,
    Text,
    Whole,
    check,
    ranges_of,
)
from lora_jax.run_folder import flat
from lora_jax.sharding.mesh import AXES, REST
from lora_jax.training.settings import AdamSettings, TrainSettings

OPEN = ("method",)  # parts of a config that others check: the arguments of a method
_ALL = Whole(least=0)  # a limit on rows; 0 is all
_RATE = OrNone(of=DROPOUT, none="the rate of the model's config.json")
_REMAT = Field(OneOf(("none", "full", "dots")), "what the backward pass recomputes, see `Stack`")
_ATTENTION = Field(
    OneOf(KERNELS),
    "by whom attention is computed; auto: what the device has, see docs/devices.md",
    False,
)
_BASE_FORMAT = Field(
    OneOf(BASE_FORMATS),
    "of the frozen matrices: packed as they are read (nf4 and others), or as its files have them (stored: "
    "GGUF, bitsandbytes)",
)
_LOFTQ = Field(
    Flag(),
    "LoRA's factors start at what packing lost (LoftQ, one step); over a packed `model.base_format`",
    False,
)
_BALANCED = Field(
    OrNone(of=Flag(), none="no"),
    "trains on as many examples of each class, the first ones of the file",
    False,
)
_MODEL = Field(Text(), "a folder, a GGUF file, `package:NAME`, or a hub name")


def of_settings(settings: type[Any], prefix: str = "") -> dict[str, Field]:
    """The fields of a library's settings: ranges and the words of its documentation."""
    words = _attributes(inspect.getdoc(settings) or "")
    return {
        prefix + name: Field(allowed, words[name], required=not prefix)
        for name, allowed in ranges_of(settings).items()
    }


def _attributes(text: str) -> dict[str, str]:
    """What the `Attributes:` of a docstring say, by name."""
    block = text.partition("Attributes:\n")[2]
    entries = re.findall(r"^  ([\w, ]+): (.*(?:\n    .*)*)", block, re.MULTILINE)
    return {
        name: " ".join(meaning.split()) for names, meaning in entries for name in names.split(", ")
    }


def _seeds(meaning: str) -> Field:
    return Field(Several(of=SEED), meaning)


_OPTIMISATION: Fields = {
    **of_settings(TrainSettings),
    **of_settings(AdamSettings, "adam."),
    "batch_size": Field(Whole(), "examples of a batch, on all devices together"),
    "verify": Field(
        Flag(), "checks the adapted model before training, see `lora_jax.verify`", False
    ),
}
_MESH: Fields = {
    f"mesh.{axis}": Field(
        Whole(least=REST, most=4096),
        f"size of the axis, from 1; {REST}: all that the others leave",
        False,
    )
    for axis in AXES
}
_RUN: Fields = {
    **_OPTIMISATION,
    **_MESH,
    "seeds": _seeds("one run for each"),
    "eval_only": Field(Flag(), "evaluates `adapter` instead of training"),
    "adapter": Field(Text(empty="none"), "with `eval_only`: the run to evaluate"),
    "adapter_task": Field(
        OrNone(of=Text(), none="the run's task"),
        "with `eval_only`: the task that `adapter` was trained on, if it is another one on purpose",
        False,
    ),
    "model.name": _MODEL,
    "model.base_format": _BASE_FORMAT,
    "model.attention": _ATTENTION,
    "model.remat": _REMAT,
    "model.unroll": Field(Whole(most=1000), "layers per iteration of the scan over layers"),
    "data.max_length": Field(Whole(least=3, most=2**16), "tokens of an example; the rest is cut"),
    "data.max_examples": Field(_ALL, "training examples; 0 is all"),
    "data.max_eval_examples": Field(_ALL, "examples of each evaluation split; 0 is all"),
    "data.order_seed": Field(
        OrNone(of=SEED, none="the seed of the run"), "of the order of the examples", False
    ),
    "data.row_length": Field(
        OrNone(of=Whole(least=0, most=2**16), none="what each batch needs"),
        "tokens of a packed row; 0: the longest that an example can be",
        False,
    ),
}
GLUE: Fields = {
    **_RUN,
    "task": Field(OneOf((*TASKS, "sentiment")), "the task; `sentiment` is the quickstart's"),
    "model.hidden_dropout_prob": Field(_RATE, "dropout of the encoder"),
    "model.attention_probs_dropout_prob": Field(_RATE, "dropout of attention weights"),
    "model.classifier_dropout": Field(_RATE, "dropout before the output layer of the head", False),
    "data.source": Field(Text(), "`tfds`, `tfds:DIR`, or a folder with the original GLUE files"),
    "data.balanced": _BALANCED,
}
OWN_TEXTS = "classify"  # `task` of experiments.classify
CLASSIFY: Fields = {
    **_RUN,
    "task": Field(OneOf((OWN_TEXTS,)), "marks the config as one of experiments.classify"),
    "labels": Field(
        OneOf(("classes", "numbers")), "what the label column holds; numbers: regression"
    ),
    "headline": Field(
        OneOf(("auto", *CLASSES, "pearson", "spearman")),
        "the score that chooses the best epoch; auto: accuracy, or pearson for numbers",
    ),
    **{name: GLUE[name] for name in GLUE if name.endswith("dropout_prob")},
    "data.train": Field(
        Several(of=Text(), empty="none, which `eval_only` with `held_out` allows"),
        "the file of the training rows, or several",
    ),
    "data.held_out": Field(
        Several(of=Text(), empty="a share of `train`"), "the file of the held-out rows, or several"
    ),
    "data.held_out_share": Field(Number(above=0, below=1), "of the rows of `train`, without files"),
    "data.split_seed": Field(SEED, "of the choice of held-out rows, and of rows below a limit"),
    "data.text": Field(Text(), "the column of the text, or of the first of a pair"),
    "data.pair": Field(Text(empty="single texts"), "the column of the second text of a pair"),
    "data.label": Field(Text(), "the column of the label"),
    "data.classes": Field(
        Several(of=Text(), empty="those of the training file, sorted"),
        "the classes, in their order",
    ),
}
_BEAMS: Fields = {
    "decode.beams": Field(Whole(most=1000), "continuations that are searched at once"),
    "decode.length_penalty": Field(
        Number(least=-100, most=100), "exponent of the length; larger favours longer texts"
    ),
    "decode.no_repeat_ngram": Field(
        Whole(least=0, most=1000), "size of the n-grams that may not occur twice; 0 allows all"
    ),
    "decode.max_tokens": Field(Whole(most=2**16), "of a continuation"),
    "decode.batch_size": Field(Whole(most=10_000), "prompts, each with `beams` continuations"),
}
DATA_TO_TEXT: Fields = {
    **_RUN,
    "dataset": Field(OneOf(DATASETS), "the corpus"),
    "label_smoothing": Field(Number(least=0, below=1), "of the training loss"),
    "loftq": _LOFTQ,
    "model.embd_pdrop": Field(_RATE, "of GPT-2: dropout of embeddings", False),
    "model.attn_pdrop": Field(_RATE, "of GPT-2: dropout of attention weights", False),
    "model.resid_pdrop": Field(_RATE, "of GPT-2: dropout of what joins the residual stream", False),
    "model.attention_dropout": Field(_RATE, "of Llama's kind: dropout of attention weights", False),
    "data.source": Field(Text(), "the folder of the original files"),
    "data.balanced": _BALANCED,
    "data.max_prompts": Field(_ALL, "distinct inputs of the decoded split; 0 is all"),
    "data.train_split": Field(
        OneOf(("train", "test")),
        "the split that is trained on; test stands in where the training file cannot be had",
        False,
    ),
    "data.decode_split": Field(
        OneOf((*SPLITS, "")), "the split that is decoded and scored; '' decodes nothing"
    ),
    **_BEAMS,
}
TUNE: Fields = {
    **_RUN,
    **_BEAMS,
    **TUNE_FIELDS,
    "label_smoothing": DATA_TO_TEXT["label_smoothing"],
    "loftq": _LOFTQ,
    **{
        f"model.{name}": DATA_TO_TEXT[f"model.{name}"]
        for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop", "attention_dropout", "attention")
    },
}
PRETRAIN: Fields = {
    **_OPTIMISATION,
    **_MESH,
    "seed": Field(SEED, "of the initial values, dropout and the order of the documents"),
    "model.n_embd": Field(Whole(most=2**16), "width"),
    "model.n_layer": Field(Whole(most=1000), "layers"),
    "model.n_head": Field(Whole(most=2**10), "attention heads of a layer"),
    "model.n_positions": Field(Whole(least=2, most=2**16), "tokens of the longest document"),
    "tokenizer.name": Field(Text(empty="a new one"), "an existing tokenizer, folder or hub name"),
    "tokenizer.vocab_size": Field(Whole(least=257, most=2**20), "tokens of a new one"),
    "data.source": Field(Text(), "the folder of the original files"),
    "data.max_examples": Field(_ALL, "rows of each corpus; 0 is all"),
    **{
        f"data.corpora.{name}": Field(
            OneOf(("texts", "pairs")), "read as texts alone, or as pairs of data and text", False
        )
        for name in DATA_TO_TEXT_CORPORA
    },
}
DIFFUSION: Fields = {**_OPTIMISATION, **_MESH, **MODEL_FIELDS}
STYLE: Fields = {**_OPTIMISATION, **_MESH, **STYLE_FIELDS}
SUBSPACE: Fields = {
    "model": Field(Text(empty="none: no Table 7 and no Figure 8"), "the base of the adapters"),
    "comparisons": Field(
        Several(of=Several(of=Text(), different=False, size=2), different=False, empty="none"),
        "pairs of names of adapters",
    ),
    "directions": Field(
        Several(of=OneOf(("a", "b", "delta_in", "delta_out"))), "singular vectors to compare"
    ),
    "weights": Field(Text(), "pattern: paths of the adapted layers to analyse"),
    "layers": Field(
        Several(of=Whole(most=1000), empty="first, two between, last"),
        "shown in figures, counted from 1",
    ),
    "zoom": Field(Whole(most=1000), "size of the triangle beside the maps"),
    "top_weight_directions": Field(Number(above=0, most=1), "share of W's directions in Figure 8"),
    "draws": Field(Whole(most=10_000), "random matrices for the control of Table 7"),
    "seed": Field(SEED, "of everything random"),
}
SWEEP: Fields = {
    "experiment": Field(OneOf(("glue", "nlg", "tune")), "whose runs are varied; they are in `run`"),
    "runs_per_program": Field(Whole(least=0, most=2**16), "runs trained together; 0: measured"),
}
_SIZES = Several(of=Whole(most=2**20), empty="those of the plan")
PLAN: Fields = {
    **_OPTIMISATION,
    **_MESH,
    "model.size": Field(Text(), "an encoder, GPT-2 or GPT-3, a decoder such as llama-2-7b, or a U-Net"),
    "model.base_format": _BASE_FORMAT,
    "model.attention": _ATTENTION,
    "model.remat": _REMAT,
    "model.unroll": Field(Whole(most=1000), "layers per iteration of the scan over layers"),
    "packed": Field(
        Several(of=OneOf(tuple(FORMATS)), empty="none"), "forms of the base, planned beside the float one"
    ),
    "runs": Field(Whole(most=2**16), "of a sweep's program; 1 is a run alone"),
    "orders": Field(OneOf(("own", "shared")), "a batch for each run, or one for all"),
    "rows": Field(Whole(most=2**20), "of a run's batch"),
    "length": Field(Whole(least=2, most=2**20), "tokens of a row"),
    "outputs": Field(Whole(most=2**20), "examples, or predicted tokens, of a row"),
    **{
        f"single_mesh.{axis}": Field(Whole(least=-1, most=4096), "of one run at a time; 0: as `mesh`")
        for axis in AXES[1:]
    },
    **{f"search.{name}": Field(_SIZES, "tried by --search") for name in ("model", "rows", "runs", "run")},
}  # fmt: skip


def check_run(config: ConfigDict) -> None:
    """Checks the config of a run: of `experiments.glue`, `.quickstart`, `.classify`, `.nlg` or `.tune`.

    Raises:
      InputError: see `check_config` and `check_together`.
    """
    check_values(config)
    check_together(config)


def check_values(config: ConfigDict) -> None:
    """Checks every field of the config of a run by itself; InputError as of `check_config`."""
    of_task = CLASSIFY if config.get("task") == OWN_TEXTS else GLUE
    of_kind = DATA_TO_TEXT if "dataset" in config else TUNE if "samples" in config else of_task
    check_config(config, of_kind, OPEN)


def check_config(
    config: ConfigDict, fields: Fields, open_parts: tuple[str, ...] = (), where: str = "config"
) -> None:
    """Checks every field of a config; numbers become Python's own.

    Args:
      config: changed in place.
      fields: its fields.
      open_parts: parts that are checked elsewhere.
      where: the config's name, for messages.

    Raises:
      InputError: a field is missing or unknown, or its value is not in its range; the message names it.
    """
    values = flat(config.to_dict())
    for name, field in fields.items():
        if name not in values and field.required:
            raise InputError(f"{where} has no field {name!r}: {field.meaning} ({field.allowed})")
    for name, value in values.items():
        if name.partition(".")[0] in open_parts:
            continue
        if name not in fields:
            guess = did_you_mean(name, fields) or ";"
            raise InputError(
                f"{where} has an unknown field {name!r}{guess} known are {sorted(fields)}"
            )
        plain = check(f"{where}.{name}", value, fields[name].allowed)
        if type(plain) is not type(value):
            _set(config, name, plain)


def _set(config: ConfigDict, name: str, value: Any) -> None:
    *parents, last = name.split(".")
    at = config
    for parent in parents:
        at = at[parent]
    with at.ignore_type():
        at[last] = value
