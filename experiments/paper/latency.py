"""Table 1 of the paper: forward latency of GPT-2 medium in ms, mean of 100 trials, as printed.

The paper does not say what its `±` is, nor in which precision it computes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

DEVICE = "NVIDIA Quadro RTX8000"
MODEL = "gpt2-medium"
VALUES = 354_823_168  # of GPT-2 medium, of which the table's sizes are shares


@dataclasses.dataclass(frozen=True)
class PaperPoint:
    """A column of Table 1.

    Attributes:
      batch: rows of the batch.
      length: tokens of a row.
      trained: values of the adapters, as printed.
      base: of "Fine-Tune / LoRA", in ms.
      adapters: ms and slow-down by the method of this project that the row is.
    """

    batch: int
    length: int
    trained: str
    base: str
    adapters: Mapping[str, str]

    @property
    def values(self) -> float:
        """Values of the adapters, as a number."""
        return float(self.trained.removesuffix("M")) * 1e6


TABLE_1 = (
    PaperPoint(
        32, 512, "0.5M", "1449.4±0.8",
        {"adapter_l": "1482.0±1.0 (+2.2%)", "adapter_h": "1492.2±1.0 (+3.0%)"},
    ),
    PaperPoint(
        16, 256, "11M", "338.0±0.6",
        {"adapter_l": "354.8±0.5 (+5.0%)", "adapter_h": "366.3±0.5 (+8.4%)"},
    ),
    PaperPoint(
        1, 128, "11M", "19.8±2.7",
        {"adapter_l": "23.9±2.1 (+20.7%)", "adapter_h": "25.8±2.2 (+30.3%)"},
    ),
)  # fmt: skip
