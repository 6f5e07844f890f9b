"""The rows of the paper's Tables 2, 3, 4 and 15 as data, in the paper's order.

A row whose count does not round to the printed figure has a `reason`. Where the paper does not give a
row's setting, `settings_known` is false and the `note` says what the setting here rests on.
"""

from __future__ import annotations

from experiments.paper.glue_rows import TABLE_2
from experiments.paper.gpt2_rows import TABLE_3
from experiments.paper.gpt3_rows import TABLE_4, TABLE_15

TITLES = {
    2: "GLUE, RoBERTa and DeBERTa XXL",
    3: "E2E, GPT-2 medium and large",
    4: "WikiSQL, MNLI and SAMSum, GPT-3 175B",
    15: "settings of each method, GPT-3 175B",
}
ROWS = (*TABLE_2, *TABLE_3, *TABLE_4, *TABLE_15)
