"""Tables 5, 6, 15, 16 and 18 as sweeps (Figure 2 is drawn from Table 15's), and docs/variants.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from configs.sweep.table_16 import SETTINGS as SIZES_16
from experiments.paper.columns import COLUMNS
from experiments.paper.scores import TABLE_18
from experiments.reproduce import bands, gpt3_items
from experiments.reproduce.items import Item
from experiments.reproduce.text_items import SMALL_GPT2, TOLERANCES

_NEED = {"model.name": SMALL_GPT2}
# What is scored beside the loss, and about how many examples of the set decide it.
_SCORED = {"sst2": ("accuracy", 872), "mnli": ("accuracy", 2_000), "mnli_text": ("accuracy", 500),
           "wikisql": ("logical_form", 500), "e2e": ("bleu", 0)}  # fmt: skip
_ENCODERS = {"minilm": "MiniLM-L6", "roberta_base": "RoBERTa-base"}  # with a head, on GLUE
_EXAMPLES = {**gpt3_items.EXAMPLES, "sst2": 67_349, "mnli": 392_702, "e2e": 42_061}
_FAR = ("roberta_base", "gpt2_xl", "gpt2_medium")  # models for an accelerator
# A small decoder for comparisons, half as wide as that of Table 3.
TINY = Item(
    table="variants", model="small", name="pretrained", module="experiments.pretrain",
    config="configs/pretrain/small.py", source="nlg", metrics=("loss",), tolerances={"": 0.02},
    settings=(
        "--config.model.n_embd=128", "--config.model.n_positions=256",
        "--config.tokenizer.vocab_size=2048",
    ),
    differs="1.09M values",
)  # fmt: skip


def tables() -> Iterator[Item]:
    """The paper's tables that one sweep makes."""
    for table in ("5", "6"):
        for model in _ENCODERS:
            yield _sweep(table, model, "sst2")
        for model in ("smollm2", "gpt2_xl"):
            for dataset in ("wikisql", "mnli_text"):
                yield _sweep(table, model, dataset)
    own = ("wikisql", "mnli_text")  # Table 15's
    for model, datasets in (("smollm2", (*own, "e2e")), ("small", ("e2e",)), ("gpt2_xl", own)):
        for dataset in datasets:
            yield _sweep("15", model, dataset)
    for model in (*_ENCODERS, "smollm2", "gpt2_xl"):
        for size in SIZES_16:
            item = _sweep("16", model, "mnli" if model in _ENCODERS else "mnli_text")
            config = f"configs/sweep/table_16.py:{size}" + (
                "" if model == "minilm" else f",{model}"
            )
            yield dataclasses.replace(
                item, name=str(size), config=config, examples=size if model in _FAR else 0
            )
    for model in ("small", "smollm2", "gpt2_medium"):
        yield _ranks_of_e2e(model)


def _sweep(table: str, model: str, task: str) -> Item:
    """A sweep of a table on a task of GLUE or a data set, with a model."""
    metric, scored = _SCORED[task]
    encoder, far = model in _ENCODERS, model in _FAR
    default = model == ("minilm" if encoder else "smollm2")
    chance = bands.chance(0.8 if encoder else 0.5, scored) if scored else 0.0
    tolerances = {"loss": TOLERANCES["loss"], metric: max(0.02, chance)}
    return Item(
        table=table, model=model, name=task, module="experiments.sweep", kind="sweep",
        config=f"configs/sweep/table_{table}.py:{task}" + ("" if default else f",{model}"),
        source="glue" if encoder else gpt3_items.source(task),
        metrics=(metric,) if encoder else ("loss", metric), tolerances=tolerances, percent=(metric,),
        needs=_NEED if model == "small" else {}, accelerator=far, examples=_EXAMPLES[task] if far else 0,
        differs=f"{_ENCODERS[model]} on a task of GLUE" if encoder else gpt3_items.DIFFERS[model],
    )  # fmt: skip


def _ranks_of_e2e(model: str) -> Item:
    """Table 18 with a model."""
    far, columns = model in _FAR, COLUMNS[18]
    paper = {
        f"rank={rank}: {column.metric}": score
        for rank, scores in TABLE_18.items()
        for column, score in zip(columns, scores, strict=True)
    }
    return Item(
        table="18", model=model, name="e2e", module="experiments.sweep", kind="sweep",
        config=f"configs/sweep/table_18.py:{model}", source="nlg",
        metrics=tuple(column.metric for column in columns), tolerances=TOLERANCES,
        percent=tuple(column.metric for column in columns if column.percent),
        needs=_NEED if model == "small" else {}, paper=paper if far else {}, accelerator=far,
        examples=_EXAMPLES["e2e"] if far else 0, differs="" if far else "another model and less training",
    )  # fmt: skip


def comparisons() -> Iterator[Item]:
    """Every method after LoRA on one task (docs/variants.md)."""
    yield TINY
    yield Item(
        table="variants", model="small", name="e2e", module="experiments.compare", kind="comparison",
        config="configs/compare/small.py", source="nlg", needs={"model.name": (TINY.id, "model")},
        tolerances={"": 0.02},
    )  # fmt: skip
    yield Item(
        table="variants", model="minilm", name="sst2", module="experiments.compare", kind="comparison",
        config="configs/compare/glue.py:sst2", settings=("--config.run.model.unroll=6",), source="glue",
        tolerances={"": 0.03}, percent=("*",),
    )  # fmt: skip
