"""Table 2: MiniLM, which needs no hub, and the rows of RoBERTa and DeBERTa XXL."""

from __future__ import annotations

from collections.abc import Iterator

from experiments.paper.columns import COLUMNS
from experiments.paper.scores import SCORES
from experiments.reproduce import bands
from experiments.reproduce.items import Item

# Examples of the training sets, and of what is scored.
_SIZES = {
    "mnli": (392_702, 9_815), "sst2": (67_349, 872), "mrpc": (3_668, 408), "cola": (8_551, 1_043),
    "qnli": (104_743, 5_463), "qqp": (363_846, 40_430), "rte": (2_490, 277), "stsb": (5_749, 1_500),
}  # fmt: skip
_FROM_MNLI = ("mrpc", "rte", "stsb")
# Rows in the order of the paper's table: model, name, config, its variant, and whether the row starts these
# three tasks from the MNLI adapter.
_ROWS = (
    ("roberta_base", "full", "roberta_base_full", "", False),
    ("roberta_base", "bitfit", "roberta_base_bitfit", "", False),
    ("roberta_base", "adapter_d", "roberta_base_adapter_d", "small", False),
    ("roberta_base", "adapter_d_large", "roberta_base_adapter_d", "large", False),
    ("roberta_base", "lora", "roberta_base_lora", "", True),
    ("roberta_large", "full", "roberta_large_full", "", False),
    ("roberta_large", "lora", "roberta_large_lora", "", True),
    ("roberta_large", "adapter_p_large", "roberta_large_adapter_p", "large", False),
    ("roberta_large", "adapter_p", "roberta_large_adapter_p", "small", False),
    ("roberta_large", "adapter_h_large", "roberta_large_adapter_h", "large", False),
    ("roberta_large", "adapter_h", "roberta_large_adapter_h", "small", False),
    ("roberta_large", "lora_restricted", "roberta_large_lora", "restricted", False),
    ("deberta_xxl", "full", "deberta_xxl_full", "", False),
    ("deberta_xxl", "lora", "deberta_xxl_lora", "", True),
)
_MINILM = ("head_only", "bitfit", "lora", "full")
_EPOCHS = {"mrpc": 2, "rte": 2, "stsb": 2}
_DIFFERS = (
    "MiniLM-L6, a sentence encoder of 22.7M values; one epoch, at most 10,000 examples of SST-2"
)


# Near what the scores of the paper's rows and of MiniLM are; the tolerance depends little on it.
_TYPICAL = {"cola": 0.65, "stsb": 0.9}


def tolerances(task: str, share: float = 0.9) -> dict[str, float]:
    """What two runs of one seed may differ by, chance in the dev examples alone (95%).

    Of a share of right answers see `bands.chance`; of a correlation r, also Matthews', the standard error is
    (1 - r^2) / sqrt(n).

    Args:
      task: of GLUE.
      share: of right answers, about.
    """
    scored = _SIZES[task][1]
    correlation = _TYPICAL.get(task)
    if correlation is None:
        return {"": bands.chance(share, scored)}
    return {"": 1.96 * 2**0.5 * (1 - correlation**2) / scored**0.5}


def minilm() -> Iterator[Item]:
    """Four methods on four tasks, with three seeds each."""
    metrics = {column.task: column.metric for column in COLUMNS[2]}
    for task in ("sst2", "mrpc", "rte", "stsb"):
        epochs = (f"--config.epochs={_EPOCHS[task]}",) if task in _EPOCHS else ()
        for method in _MINILM:
            yield Item(
                table="2", model="minilm", name=f"{task}/{method}", module="experiments.glue",
                config=f"configs/glue/minilm.py:{task},{method}",
                settings=(*epochs, "--config.seeds=(0, 1, 2)"),
                source="glue", metrics=(metrics[task],), tolerances=tolerances(task, 0.8),
                percent=(metrics[task],),
                differs=_DIFFERS,
            )  # fmt: skip


def paper_rows() -> Iterator[Item]:
    """Every cell of Table 2."""
    for (model, name, config, variant, from_mnli), row in zip(_ROWS, SCORES[2], strict=True):
        for column, score in zip(COLUMNS[2], row.scores, strict=False):
            task = column.task
            argument = f"{task},{variant}" if variant else task
            start = (f"table_2/{model}/{name}/mnli", "")
            yield Item(
                table="2", model=model, name=f"{name}/{task}", module="experiments.glue",
                config=f"configs/glue/{config}.py:{argument}", source="glue", metrics=(column.metric,),
                paper={column.metric: score} if score[0].isdigit() else {},
                needs={"init_adapter": start} if from_mnli and task in _FROM_MNLI else {},
                tolerances=tolerances(task), percent=(column.metric,),
                median=True, accelerator=True, examples=_SIZES[task][0],
            )  # fmt: skip
