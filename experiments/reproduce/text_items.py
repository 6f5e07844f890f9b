"""Tables 3, 13 and 14: the small GPT-2 and SmolLM2, and the rows of GPT-2 medium and large."""

from __future__ import annotations

from collections.abc import Iterator

from experiments.paper.columns import COLUMNS
from experiments.paper.scores import SCORES, ScoreRow
from experiments.reproduce.items import Item

_TABLES = {"e2e": 3, "dart": 13, "webnlg": 14}
_SIZES = {"e2e": 42_061, "dart": 62_659, "webnlg": 18_025}  # examples of the training sets
# Configs of Table 3's rows in its order, with their variants; Tables 13 and 14 have all but Adapter H.
_ROWS = (
    ("medium", "full", ""), ("medium", "adapter_l", "small"), ("medium", "adapter_l", "large"),
    ("medium", "adapter_h", ""), ("medium", "top2", ""), ("medium", "prefix_layer", ""),
    ("medium", "lora", ""), ("large", "full", ""), ("large", "adapter_l", "small"),
    ("large", "adapter_l", "large"), ("large", "prefix_layer", ""), ("large", "lora", ""),
)  # fmt: skip
# The item that makes the small GPT-2, and what it takes from its folder.
SMALL_GPT2 = ("table_3/small/pretrained", "model")
# By how much one seed may differ, about; ± in the paper's tables is half of it and less.
TOLERANCES = {"bleu": 0.02, "nist": 0.2, "cider": 0.1, "loss": 0.02, "": 0.02}
_SMALL = {name: 2 * value for name, value in TOLERANCES.items()}  # of 60 inputs
_PERCENT = ("bleu", "meteor", "rouge_l")


def pretrained() -> Item:
    """The small GPT-2, which the project trains itself."""
    return Item(
        table="3", model="small", name="pretrained", module="experiments.pretrain",
        config="configs/pretrain/small.py", source="nlg", metrics=("loss",), tolerances=TOLERANCES,
        differs="4.3M values, pre-trained on the texts of E2E, WebNLG and DART alone",
    )  # fmt: skip


def small() -> Iterator[Item]:
    """E2E on the small GPT-2 and on a part of it with SmolLM2."""
    metrics = ("loss", *(column.metric for column in COLUMNS[3]))
    for method in ("none", "lora", "full"):
        yield Item(
            table="3", model="small", name=f"e2e/{method}", module="experiments.nlg",
            config=f"configs/nlg/small.py:e2e,{method}", source="nlg", tolerances=TOLERANCES,
            percent=_PERCENT,
            metrics=metrics[method == "none" :], needs={"model.name": SMALL_GPT2},
            differs="the small GPT-2, one epoch, one seed",
        )  # fmt: skip
    for method in ("none", "lora", "full"):
        yield Item(
            table="3", model="smollm2", name=f"e2e/{method}", module="experiments.nlg",
            config=f"configs/nlg/smollm2.py:e2e,{method}", source="nlg", tolerances=_SMALL, percent=_PERCENT,
            metrics=metrics[method == "none" :],
            settings=(
                "--config.data.max_examples=960", "--config.data.max_eval_examples=200",
                "--config.data.max_prompts=60", "--config.data.row_length=128",
            ),
            differs="SmolLM2-135M, 960 rows, one seed, 60 inputs of the test set",
        )  # fmt: skip


def paper_rows() -> Iterator[Item]:
    """Every row of Tables 3, 13 and 14."""
    for dataset, number in _TABLES.items():
        named = [row for row in _ROWS if number == 3 or row[1] != "adapter_h"]
        for (size, method, variant), row in zip(named, SCORES[number], strict=True):
            yield _item(dataset, number, (size, method, variant), row)


def _item(dataset: str, number: int, named: tuple[str, str, str], row: ScoreRow) -> Item:
    size, method, variant = named
    columns = COLUMNS[number]
    return Item(
        table=str(number), model=f"gpt2_{size}",
        name=f"{dataset}/{method}" + (f"_{variant}" if variant else ""), module="experiments.nlg",
        config=f"configs/nlg/gpt2_{size}_{method}.py:{dataset}" + (f",{variant}" if variant else ""),
        source="nlg", metrics=tuple(column.metric for column in columns), tolerances=TOLERANCES,
        percent=tuple(column.metric for column in columns if column.percent),
        paper={c.metric: score for c, score in zip(columns, row.scores, strict=True)},
        accelerator=True, examples=_SIZES[dataset],
    )  # fmt: skip
