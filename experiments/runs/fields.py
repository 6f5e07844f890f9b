"""All fields of the configs, with what each may be: checked before a folder is claimed or data are read.

`docs/settings.md` is made from these tables (`python -m experiments.settings`).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, get_args

from ml_collections import ConfigDict

from experiments.runs.options import check_together
from lora_jax.checks import WIDEST
from lora_jax.data.data_to_text import DATASETS, SPLITS
from lora_jax.data.glue_tasks import TASKS
from lora_jax.errors import InputError
from lora_jax.low_rank.contraction import Scaling
from lora_jax.methods.bottleneck import MOST_SIZE
from lora_jax.methods.prefix import MOST_TOKENS
from lora_jax.methods.selection import MOST_LAYERS
from lora_jax.ranges import (
    DROPOUT,
    SEED,
    Flag,
    Number,
    OneOf,
    OrNone,
    Range,
    Several,
    Text,
    Whole,
    check,
    ranges_of,
)
from lora_jax.run_folder import flat
from lora_jax.sharding.mesh import AXES, REST
from lora_jax.training.settings import AdamSettings, TrainSettings


class Field(NamedTuple):
    """A field of a config.

    Attributes:
      allowed: what its value may be.
      meaning: for the documents.
      required: whether every config must have it.
    """

    allowed: Range
    meaning: str
    required: bool = True


Fields = Mapping[str, Field]  # by dotted name
OPEN = ("method",)  # parts of a config that others check: the arguments of a method
_ALL = Whole(least=0)  # a limit on rows; 0 is all
_RATE = OrNone(of=DROPOUT, none="the rate of the model's config.json")
_REMAT = Field(OneOf(("none", "full", "dots")), "what the backward pass recomputes, see `Stack`")
_MODEL = Field(Text(), "a folder, `package:NAME`, or a hub name")


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
    "data.source": Field(Text(), "`tfds`, `tfds:DIR`, or a folder with the original GLUE files"),
}
DATA_TO_TEXT: Fields = {
    **_RUN,
    "dataset": Field(OneOf(DATASETS), "the corpus"),
    "label_smoothing": Field(Number(least=0, below=1), "of the training loss"),
    "model.embd_pdrop": Field(_RATE, "dropout of embeddings"),
    "model.attn_pdrop": Field(_RATE, "dropout of attention weights"),
    "model.resid_pdrop": Field(_RATE, "dropout of what joins the residual stream"),
    "data.source": Field(Text(), "the folder of the original files"),
    "data.max_prompts": Field(_ALL, "distinct inputs of the decoded split; 0 is all"),
    "data.decode_split": Field(OneOf(SPLITS), "the split that is decoded and scored"),
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
        for name in DATASETS
    },
}
SUBSPACE: Fields = {
    "model": Field(Text(empty="none: no Table 7 and no Figure 8"), "the base of the adapters"),
    "comparisons": Field(
        Several(of=Several(of=Text(), different=False), different=False, empty="none"),
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
    "experiment": Field(OneOf(("glue", "nlg")), "whose runs are varied; they are in `run`"),
    "runs_per_program": Field(Whole(least=0, most=2**16), "runs trained together; 0: measured"),
}
_SIZES = Several(of=Whole(most=2**20), empty="those of the plan")
PLAN: Fields = {
    **_OPTIMISATION,
    **_MESH,
    "model.size": Field(Text(), "a model of the paper, such as roberta-large or gpt3-175b"),
    "model.remat": _REMAT,
    "model.unroll": Field(Whole(most=1000), "layers per iteration of the scan over layers"),
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


_STD = Field(Number(least=0, most=WIDEST), "standard deviation of normal initial values")
# Checked where the methods are made (`lora_jax.methods`), with the same bounds: a test holds them together.
METHOD: Fields = {
    "lora.rank": Field(Whole(), "r of every factor pair; no more than the smaller side of a matrix"),
    "lora.alpha": Field(OrNone(of=Number(above=0), none="the rank"), "the constant of section 4.1"),
    "lora.scaling": Field(OneOf(get_args(Scaling)), "of the update; the second one is rsLoRA's"),
    "lora.init": Field(OneOf(("kaiming", "gaussian")), "initial values of A"),
    "lora.std": _STD,
    "lora.dropout": Field(DROPOUT, "on the input of A"),
    "lora.magnitude": Field(Flag(), "whether the norms of columns train too (DoRA)"),
    "lora.too_large": Field(
        OrNone(of=OneOf(("error", "cap", "skip")), none="the default of the targets"),
        "what becomes of a layer that is smaller than the rank",
    ),
    "lora.bias": Field(OneOf(("none", "all", "lora_only")), "which biases train too"),
    **{f"adapter_{kind}.size": Field(Whole(most=MOST_SIZE), "of the bottleneck") for kind in "hpld"},
    "adapter_d.layers": Field(Whole(most=MOST_LAYERS), "the last ones, which have adapters"),
    "top_layers.count": Field(Whole(most=MOST_LAYERS), "the last ones, which train"),
    **{
        f"{name}.{kind}": Field(Whole(least=0, most=MOST_TOKENS), f"tokens; not both 0 ({kind})")
        for name in ("prefix_embed", "prefix_layer")
        for kind in ("prefix", "infix")
    },
    "prefix_embed.init": Field(OneOf(("vocabulary", "normal")), "of the tokens"),
}  # fmt: skip


def check_run(config: ConfigDict) -> None:
    """Checks the config of a run of `experiments.glue`, `experiments.nlg` or `experiments.quickstart`.

    Raises:
      InputError: see `check_config` and `check_together`.
    """
    check_config(config, DATA_TO_TEXT if "dataset" in config else GLUE, OPEN)
    check_together(config)


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
            raise InputError(f"{where} has an unknown field {name!r}; known are {sorted(fields)}")
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
