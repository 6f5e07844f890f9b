"""The scores that the paper prints in Tables 2 to 6, 8, 13 to 16 and 18, as printed.

A score is text such as "87.5±.3": the value and, where the paper gives one, its spread over seeds.
This module is the only home of these numbers: the report reads them, and the tests compare the heads of
the configs with them. Tables 2, 3, 4, 13, 14 and 15 have the rows of `experiments.paper.rows`; Tables 13 and
14 print other labels and figures for the models of Table 3.
"""

from __future__ import annotations

import dataclasses

from experiments.paper.row import PaperRow
from experiments.paper.rows import ROWS


@dataclasses.dataclass(frozen=True)
class ScoreRow:
    """A row of scores.

    Attributes:
      label: as printed.
      trained: the printed number of trained values.
      row: model and method, with the count that belongs to them.
      scores: as printed, one per column.
    """

    label: str
    trained: str
    row: PaperRow
    scores: tuple[str, ...]


def parse(score: str) -> tuple[str, str]:
    """A printed score as value and spread, both text: "87.5±.3" -> ("87.5", ".3")."""
    value, _, spread = score.partition("±")
    return value, spread


# The eight tasks and the average, in the order of `ROWS`.
_TABLE_2 = """\
87.6 94.8 90.2 63.6 92.8 91.9 78.7 91.2 86.4
84.7 93.7 92.7 62.0 91.8 84.0 81.5 90.8 85.2
87.1±.0 94.2±.1 88.5±1.1 60.8±.4 93.1±.1 90.2±.0 71.5±2.7 89.7±.3 84.4
87.3±.1 94.7±.3 88.4±.1 62.6±.9 93.0±.2 90.6±.0 75.9±2.2 90.3±.1 85.4
87.5±.3 95.1±.2 89.7±.7 63.4±1.2 93.3±.3 90.8±.1 86.6±.7 91.5±.2 87.2
90.2 96.4 90.9 68.0 94.7 92.2 86.6 92.4 88.9
90.6±.2 96.2±.5 90.9±1.2 68.2±1.9 94.9±.3 91.6±.1 87.4±2.5 92.6±.2 89.0
90.2±.3 96.1±.3 90.2±.7 68.3±1.0 94.8±.2 91.9±.1 83.8±2.9 92.1±.7 88.4
90.5±.3 96.6±.2 89.7±1.2 67.8±2.5 94.8±.3 91.7±.2 80.1±2.9 91.9±.4 87.9
89.9±.5 96.2±.3 88.7±2.9 66.5±4.4 94.7±.2 92.1±.1 83.4±1.1 91.0±1.7 87.8
90.3±.3 96.3±.5 87.7±1.7 66.3±2.0 94.7±.2 91.5±.1 72.9±2.9 91.5±.5 86.4
90.6±.2 96.2±.5 90.2±1.0 68.2±1.9 94.8±.3 91.6±.2 85.2±1.1 92.3±.5 88.6
91.8 97.2 92.0 72.0 96.0 92.7 93.9 92.9 91.1
91.9±.2 96.9±.2 92.6±.6 72.4±1.1 96.0±.1 92.9±.1 94.9±.4 93.0±.2 91.3"""
_TABLE_3 = """\
68.2 8.62 46.2 71.0 2.47
66.3 8.41 45.0 69.8 2.40
68.9 8.71 46.1 71.3 2.47
67.3±.6 8.50±.07 46.0±.2 70.7±.2 2.44±.01
68.1 8.59 46.0 70.8 2.41
69.7 8.81 46.1 71.4 2.49
70.4±.1 8.85±.02 46.8±.2 71.8±.1 2.53±.02
68.5 8.78 46.0 69.9 2.45
69.1±.1 8.68±.03 46.3±.0 71.4±.2 2.49±.0
68.9±.3 8.70±.04 46.1±.1 71.3±.2 2.45±.02
70.3 8.85 46.2 71.7 2.47
70.4±.1 8.89±.02 46.8±.2 72.0±.2 2.47±.02"""
# WikiSQL, MNLI-m, ROUGE-1, ROUGE-2, ROUGE-L on SAMSum.
_TABLE_4 = """\
73.8 89.5 52.0 28.0 44.5
71.3 91.0 51.3 27.4 43.5
63.1 88.6 48.3 24.2 40.5
70.1 89.5 50.8 27.3 43.5
71.9 89.8 53.0 28.9 44.8
73.2 91.5 53.2 29.0 45.1
73.4 91.7 53.8 29.8 45.9
74.0 91.6 53.4 29.2 45.1"""
# WikiSQL, MNLI-m.
_TABLE_15 = """\
73.8 89.5
55.9 84.9
58.7 88.1
60.6 88.0
63.1 88.6
55.9 85.8
68.5 89.2
69.8 88.2
70.1 89.5
66.4 89.6
64.9 87.9
71.9 89.8
73.2 91.0
73.2 91.5
73.2 91.5
72.6 91.5
73.4 91.7
73.4 91.3
73.3 91.4
74.1 91.2
73.7 91.3
73.7 91.7
73.8 91.6
74.0 91.7
73.6 91.4
73.9 91.4
75.0 91.4
75.9 91.1
76.2 91.3
72.9 90.2"""
# Model, label, trained, then the scores. Table 3's rows in its order, without M AdapterH.
_TABLE_13 = """\
M Fine-Tune 354M 46.2 0.39 0.46
M AdapterL 0.37M 42.4 0.36 0.48
M AdapterL 11M 45.2 0.38 0.46
M FT_Top2 24M 41.0 0.34 0.56
M PrefLayer 0.35M 46.4 0.38 0.46
M LoRA 0.35M 47.1±.2 0.39 0.46
L Fine-Tune 774M 47.0 0.39 0.46
L AdapterL 0.88M 45.7±.1 0.38 0.46
L AdapterL 23M 47.1±.1 0.39 0.45
L PrefLayer 0.77M 46.7 0.38 0.45
L LoRA 0.77M 47.5±.1 0.39 0.45"""
_TABLE_14 = """\
M Fine-Tune 354M 27.7 64.2 46.5 .30 .45 .38 .76 .33 .53
M AdapterL 0.37M 45.1 54.5 50.2 .36 .39 .38 .46 .40 .43
M AdapterL 11M 48.3 60.4 54.9 .38 .43 .41 .45 .35 .39
M FT_Top2 24M 18.9 53.6 36.0 .23 .38 .31 .99 .49 .72
M Prefix 0.35M 45.6 62.9 55.1 .38 .44 .41 .49 .35 .40
M LoRA 0.35M 46.7±.4 62.1±.2 55.3±.2 .38 .44 .41 .46 .33 .39
L Fine-Tune 774M 43.1 65.3 55.5 .38 .46 .42 .53 .33 .42
L AdapterL 0.88M 49.8±.0 61.1±.0 56.0±.0 .38 .43 .41 .44 .35 .39
L AdapterL 23M 49.2±.1 64.7±.2 57.7±.1 .39 .46 .43 .46 .33 .39
L Prefix 0.77M 47.7 63.4 56.3 .39 .45 .42 .48 .34 .40
L LoRA 0.77M 48.4±.3 64.0±.3 57.0±.1 .39 .45 .42 .45 .32 .38"""


def _as_printed(table: int, text: str) -> tuple[ScoreRow, ...]:
    rows = [row for row in ROWS if row.table == table]
    return tuple(
        ScoreRow(row.row, row.paper, row, tuple(line.split()))
        for row, line in zip(rows, text.splitlines(), strict=True)
    )


def _of_table_3(text: str) -> tuple[ScoreRow, ...]:
    rows = [row for row in ROWS if row.table == 3 and row.row != "GPT-2 M (AdapterH)"]
    result = []
    for row, line in zip(rows, text.splitlines(), strict=True):
        size, name, trained, *scores = line.split()
        result.append(ScoreRow(f"GPT-2 {size} ({name})", trained, row, tuple(scores)))
    return tuple(result)


SCORES: dict[int, tuple[ScoreRow, ...]] = {
    2: _as_printed(2, _TABLE_2),
    3: _as_printed(3, _TABLE_3),
    4: _as_printed(4, _TABLE_4),
    13: _of_table_3(_TABLE_13),
    14: _of_table_3(_TABLE_14),
    15: _as_printed(15, _TABLE_15),
}

# By how much the paper's scores of GPT-3 fluctuate: the captions of Tables 4 and 15.
FLUCTUATIONS = {"wikisql": 0.5, "mnli_text": 0.1}

# Weights are letters here: q, k, v, o for W_q, W_k, W_v, W_o. GPT-3 175B; rows by task.
POINTS_5 = (("q", 8), ("k", 8), ("v", 8), ("o", 8), ("qk", 4), ("qv", 4), ("qkvo", 2))
TABLE_5: dict[str, tuple[str, ...]] = {
    "WikiSQL": ("70.4", "70.0", "73.0", "73.2", "71.4", "73.7", "73.7"),
    "MNLI": ("91.0", "90.8", "91.0", "91.3", "91.3", "91.3", "91.7"),
}
RANKS_6 = (1, 2, 4, 8, 64)
TABLE_6: dict[tuple[str, str], tuple[str, ...]] = {
    ("WikiSQL", "q"): ("68.8", "69.6", "70.5", "70.4", "70.0"),
    ("WikiSQL", "qv"): ("73.4", "73.3", "73.7", "73.8", "73.5"),
    ("WikiSQL", "qkvo"): ("74.1", "73.7", "74.0", "74.0", "73.9"),
    ("MNLI", "q"): ("90.7", "90.9", "91.1", "90.7", "90.7"),
    ("MNLI", "qv"): ("91.3", "91.4", "91.3", "91.6", "91.4"),
    ("MNLI", "qkvo"): ("91.2", "91.7", "91.7", "91.5", "91.4"),
}
# Few-shot prompting and tuning: MNLI-m, RTE.
TABLE_8: dict[str, tuple[str, ...]] = {
    "few-shot": ("40.6", "69.0"),
    "fine-tuned": ("89.5", "85.4"),
}
# By method: accuracy on MNLI-m, of training sets of these sizes, the last of which is the whole one.
SIZES_16 = (100, 1_000, 10_000, 392_702)
TABLE_16: dict[str, tuple[str, ...]] = {
    "full": ("60.2", "85.8", "88.9", "89.5"),
    "prefix_embed": ("37.6", "75.2", "79.5", "88.6"),
    "prefix_layer": ("48.3", "82.5", "85.9", "89.6"),
    "lora": ("63.8", "85.6", "89.2", "91.7"),
}
SPREAD_16 = 0.3  # ±, over seeds
# By rank: validation loss, BLEU, NIST, METEOR, ROUGE_L, CIDEr.
TABLE_18: dict[int, tuple[str, ...]] = {
    1: ("1.23", "68.72", "8.7215", "0.4565", "0.7052", "2.4329"),
    2: ("1.21", "69.17", "8.7413", "0.4590", "0.7052", "2.4639"),
    4: ("1.18", "70.38", "8.8439", "0.4689", "0.7186", "2.5349"),
    8: ("1.17", "69.57", "8.7457", "0.4636", "0.7196", "2.5196"),
    16: ("1.16", "69.61", "8.7483", "0.4629", "0.7177", "2.4985"),
    32: ("1.16", "69.33", "8.7736", "0.4642", "0.7105", "2.5255"),
    64: ("1.16", "69.24", "8.7174", "0.4651", "0.7180", "2.5070"),
    128: ("1.16", "68.73", "8.6718", "0.4628", "0.7127", "2.5030"),
    256: ("1.16", "68.92", "8.6982", "0.4629", "0.7128", "2.5012"),
    512: ("1.16", "68.78", "8.6857", "0.4637", "0.7128", "2.5025"),
    1024: ("1.17", "69.37", "8.7495", "0.4659", "0.7149", "2.5090"),
}


# The paper's tables show these times 100.
_PERCENT = (
    "bleu",
    "meteor",
    "rouge_l",
    "rouge_1",
    "rouge_2",
    "logical_form",
    "execution",
    "accuracy",
)


def as_in_paper(name: str, value: float) -> str:
    """A score as the paper's tables show it: shares and the like times 100."""
    metric = name.removesuffix("_seen").removesuffix("_unseen")
    return f"{100 * value:.2f}" if metric in _PERCENT else f"{value:.4f}"
