"""Tables 4 and 8, which the paper has of GPT-3, on models that can be had."""

from __future__ import annotations

from collections.abc import Iterator

from configs.nlg import table_12
from experiments.paper.columns import COLUMNS
from experiments.reproduce import bands
from experiments.reproduce.items import Item

EXAMPLES = {"wikisql": 56_355, "mnli_text": 392_702, "samsum": 14_732, "rte_text": 2_490}
DIFFERS = {
    "smollm2": "SmolLM2-135M in place of GPT-3, and a part of the data",
    "small": "the small GPT-2 in place of GPT-3",
    "gpt2_xl": "GPT-2 XL in place of GPT-3",
}
_METHODS = (
    "full",
    "bitfit",
    "prefix_embed",
    "prefix_layer",
    "adapter_h",
    "lora",
)  # of configs/nlg/smollm2.py
_SCORED = 500  # of the dev sets, by the configs of SmolLM2
_PROMPTED = ("mnli", "rte", "sst2")


def source(dataset: str) -> str:
    """Whose folder has a data set of Table 4."""
    return "glue" if dataset in table_12.GLUE_TEXT else "nlg"


def table_4() -> Iterator[Item]:
    """Table 4's methods on its data sets; RTE, tuned, is for Table 8."""
    for dataset in ("wikisql", "mnli_text", "samsum"):
        for method in _METHODS:
            yield _tuned("smollm2", dataset, method)
    yield _tuned("smollm2", "rte_text", "lora")
    for dataset in ("wikisql", "mnli_text", "samsum"):
        for method in table_12.table_4(fused=True):
            yield _tuned("gpt2_xl", dataset, method)
    yield _tuned("gpt2_xl", "rte_text", "lora")


def _tuned(model: str, dataset: str, method: str) -> Item:
    known = {c.metric for c in COLUMNS[4] if c.task == dataset.replace("rte", "mnli")}
    metrics, far = tuple(sorted(known)), model == "gpt2_xl"
    return Item(
        table="4", model=model, name=f"{dataset}/{method}", module="experiments.nlg",
        config=f"configs/nlg/{model}.py:{dataset},{method}", source=source(dataset), metrics=metrics,
        tolerances={"": bands.chance(0.5, _SCORED)}, percent=metrics, accelerator=far,
        examples=EXAMPLES[dataset] if far else 0, differs=DIFFERS[model],
    )  # fmt: skip


def table_8() -> Iterator[Item]:
    """Prompting with demonstrations; what tuning reaches beside it are items of Table 4."""
    for model, config in (("smollm2", "smollm2"), ("gpt2_xl", "any_decoder")):
        for task in _PROMPTED:
            yield Item(
                table="8", model=model, name=task, module="experiments.prompting",
                config=f"configs/prompting/{config}.py:{task}", source="glue", metrics=("accuracy",),
                tolerances={"": bands.chance(0.5, _SCORED)}, percent=("accuracy",),
                accelerator=model == "gpt2_xl", differs=DIFFERS[model],
            )  # fmt: skip
