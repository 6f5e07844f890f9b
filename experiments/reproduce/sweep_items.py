"""Tables 5, 6, 16 and 18 as sweeps, and the comparisons of docs/variants.md."""

from __future__ import annotations

from collections.abc import Iterator

from experiments.reproduce.items import Item

_PRETRAINED = ("table_3/small/pretrained", "model")
_NEED = {"model.name": _PRETRAINED}
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
    for table, config, source in (
        ("5", "table_5.py:sst2", "glue"),
        ("6", "table_6.py:sst2", "glue"),
        *(("16", f"table_16.py:{size}", "glue") for size in (100, 1_000, 10_000)),
    ):
        name = config.partition(":")[2]
        yield Item(
            table=table, model="minilm", name=name, module="experiments.sweep", kind="sweep",
            config=f"configs/sweep/{config}", source=source, metrics=("accuracy",), tolerances={"": 0.02},
            percent=("accuracy",),
            differs="MiniLM-L6 on a task of GLUE",
        )  # fmt: skip
    for table, config in (("5", "wikisql"), ("6", "wikisql"), ("15", "wikisql")):
        yield Item(
            table=table, model="smollm2", name=config, module="experiments.sweep", kind="sweep",
            config=f"configs/sweep/table_{table}.py:{config}", source="nlg",
            metrics=("loss", "logical_form"), tolerances={"": 0.05},
            percent=("logical_form",), differs="SmolLM2-135M on a part of WikiSQL",
        )  # fmt: skip
    for model in ("small", "smollm2", "gpt2_medium"):
        yield Item(
            table="18", model=model, name="e2e", module="experiments.sweep", kind="sweep",
            config=f"configs/sweep/table_18.py:{model}", source="nlg", metrics=("loss", "bleu"),
            needs=_NEED if model == "small" else {}, tolerances={"": 0.02}, percent=("bleu",),
            examples=42_061 if model == "gpt2_medium" else 0,
            differs="" if model == "gpt2_medium" else "another model and less training",
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
