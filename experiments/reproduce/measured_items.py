"""Tables 1 and 7, which are no scores: forward passes timed (Figure 5) and subspaces (Figures 3 to 8)."""

from __future__ import annotations

from collections.abc import Iterator

from experiments.paper.latency import TABLE_1
from experiments.reproduce.glue_items import tolerances
from experiments.reproduce.items import Item

_OURS = ("merged", "unmerged", "pool", "adapter_h", "adapter_l")  # contenders of configs/latency
_SHARED = 0.2  # slow-downs of two runs on cores that others used differed by less (docs/latency.md)
_RANKS = {
    "r8": ("--config.method.rank=8",),
    "r64": ("--config.method.rank=64", "--config.seeds=(0, 1)"),
}


def latency() -> Iterator[Item]:
    """Slow-downs over the base, by batch and contender; their bands are for the same device."""
    yield Item(
        table="1", model="gpt2_small", name="grid", module="experiments.latency", kind="latency",
        config="configs/latency/gpt2_small.py", percent=_OURS, tolerances={"": _SHARED},
        metrics=tuple(f"{place}: {name}" for place in ("1 x 32", "1 x 128", "4 x 128") for name in _OURS),
        differs="a GPT-2 of 4 layers, 256 wide, on a CPU; slow-downs in per cent of the base's time",
    )  # fmt: skip
    paper = {
        f"{point.batch} x {point.length}: {name}{'_small' if point.values < 1e6 else ''}": _slow_down(text)
        for point in TABLE_1
        for name, text in point.adapters.items()
    }  # fmt: skip
    places = [f"{point.batch} x {point.length}" for point in TABLE_1]
    lora = [f"{place}: {name}" for place in places for name in _OURS[:3]]
    yield Item(
        table="1", model="gpt2_medium", name="grid", module="experiments.latency", kind="latency",
        config="configs/latency/gpt2_medium.py", metrics=(*lora, *paper), paper=paper, percent=("*",),
        accelerator=True, differs="another device than the paper's Quadro RTX8000",
    )  # fmt: skip


def _slow_down(printed: str) -> str:
    """1482.0±1.0 (+2.2%) -> 2.2, the per cent."""
    return printed.partition("(+")[2].removesuffix("%)")


def subspaces() -> Iterator[Item]:
    """The adapters of docs/subspace.md, and their analysis: medians over layers."""
    group = "table_7/minilm"
    for name, settings in _RANKS.items():
        yield Item(
            table="7", model="minilm", name=name, module="experiments.glue",
            config="configs/glue/minilm.py:sst2,lora", source="glue", metrics=("accuracy",),
            settings=("--config.data.max_examples=0", *settings), tolerances=tolerances("sst2"),
            percent=("accuracy",), differs="the adapters for the analysis: MiniLM-L6 on SST-2",
        )  # fmt: skip
    yield Item(
        table="7", model="minilm", name="analysis", module="experiments.subspace", kind="subspace",
        config="configs/subspace/minilm_sst2.py",
        needs={
            f"adapters.{name}": (f"{group}/{folder}", f"seed_{seed}/adapter")
            for name, folder, seed in (("r8", "r8", 0), ("r64", "r64", 0), ("r64b", "r64", 1))
        },
        metrics=("phi", "over_random", "of_own_top", "factor"),
        differs="384 dimensions where GPT-3 has 12,288, and ranks of 8 and 64 where Table 7 has 4 and 64",
    )  # fmt: skip
