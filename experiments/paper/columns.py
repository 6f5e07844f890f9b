"""The columns of the paper's tables of scores, with their titles and set-ups."""

from __future__ import annotations

import dataclasses

TITLES = {
    2: "GLUE dev sets",
    3: "E2E test set",
    4: "WikiSQL, MNLI and SAMSum",
    5: "which attention weights to adapt, at one budget",
    6: "rank and adapted weights",
    8: "few-shot prompting and tuning",
    13: "DART test set",
    14: "WebNLG test set",
    15: "settings of each method on WikiSQL and MNLI",
    16: "little training data",
    18: "rank, GPT-2 on E2E",
}
SETUPS = {
    2: "RoBERTa and DeBERTa XXL, all training examples; median of 5 seeds, each at its best epoch on "
    "the dev set itself. `*`: the paper took it from prior work; `†`: restricted set-up (length "
    "128, one batch size, no start from MNLI). LoRA on W_q and W_v.",
    3: "all 42,000 training rows, 5 epochs, batch 8, learning rate 2e-4 (LoRA), beam 10; mean of 3 "
    "seeds, each at its best epoch. `*`: the paper took it from prior work.",
    4: "GPT-3 175B; logical form on WikiSQL's validation set (±0.5), accuracy on MNLI's matched one "
    "(±0.1), ROUGE on SAMSum's test set (±0.2, ±0.2, ±0.1). Batch 128, 2 epochs. The weights are not "
    "public: ours are other models. DialogSum, not in the paper, is of SAMSum's kind.",
    5: "GPT-3 175B, 18M trained values in every column, batch 128, 2 epochs, learning rate 2e-4; "
    "WikiSQL fluctuates by ±0.5, MNLI by ±0.1.",
    6: "GPT-3 175B, batch 128, 2 epochs, learning rate 2e-4; WikiSQL fluctuates by ±0.5, MNLI by "
    "±0.1.",
    8: "GPT-3 175B. Few-shot: on MNLI two demonstrations of each class, six in all; RTE from the GPT-3 "
    "paper. The weights are not public: ours are other models. SST-2 is not in the paper's table.",
    13: "all training rows, 5 epochs, batch 8, learning rate 2e-4 (LoRA), beam 10; mean of 3 seeds. "
    "The spread of MET and TER is below 0.01.",
    14: "all training rows, 5 epochs, batch 8, learning rate 2e-4 (LoRA), beam 10; mean of 3 seeds. "
    "U: categories unseen in training, S: seen, A: all.",
    15: "GPT-3 175B, batch 128, 2 epochs; WikiSQL fluctuates by ±0.5, MNLI by ±0.1. The last four rows "
    "are LoRA with prefixes (appendix E). The weights are not public: ours are other models.",
    16: "GPT-3 175B on parts of MNLI, as many examples of each class; accuracy on the whole matched dev set, "
    "±0.3 over seeds; chance is 33.3. The weights are not public: ours are other models.",
    18: "GPT-2 medium with LoRA, 26,000 steps, hyperparameters tuned at r=4; one run per rank.",
}


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of scores.

    Attributes:
      task: of the run records that fill it.
      metric: its name in run records.
      title: as printed in the paper.
      percent: whether the paper prints it times 100.
    """

    task: str
    metric: str
    title: str
    percent: bool = True


_WIKISQL = Column("wikisql", "logical_form", "WikiSQL")
_MNLI = Column("mnli_text", "accuracy", "MNLI-m")
COLUMNS: dict[int, tuple[Column, ...]] = {
    2: (
        Column("mnli", "accuracy", "MNLI"),
        Column("sst2", "accuracy", "SST-2"),
        Column("mrpc", "accuracy", "MRPC"),
        Column("cola", "matthews", "CoLA"),
        Column("qnli", "accuracy", "QNLI"),
        Column("qqp", "accuracy", "QQP"),
        Column("rte", "accuracy", "RTE"),
        Column("stsb", "pearson", "STS-B"),
    ),
    3: (
        Column("e2e", "bleu", "BLEU"),
        Column("e2e", "nist", "NIST", False),
        Column("e2e", "meteor", "MET"),
        Column("e2e", "rouge_l", "ROUGE-L"),
        Column("e2e", "cider", "CIDEr", False),
    ),
    4: (
        _WIKISQL,
        _MNLI,
        *(
            Column(task, f"rouge_{kind}", f"{title} R{kind.upper()}")
            for task, title in (("samsum", "SAMSum"), ("dialogsum", "DialogSum"))
            for kind in ("1", "2", "l")
        ),
    ),
    8: (
        Column("mnli", "accuracy", "MNLI-m"),
        Column("rte", "accuracy", "RTE"),
        Column("sst2", "accuracy", "SST-2"),
    ),
    13: (
        Column("dart", "bleu", "BLEU"),
        Column("dart", "meteor", "MET", False),
        Column("dart", "ter", "TER", False),
    ),
    14: tuple(
        Column("webnlg", metric + subset, f"{title} {letter}", metric == "bleu")
        for metric, title in (("bleu", "BLEU"), ("meteor", "MET"), ("ter", "TER"))
        for subset, letter in (("_unseen", "U"), ("_seen", "S"), ("", "A"))
    ),
    15: (_WIKISQL, _MNLI),
    18: (
        Column("e2e", "loss", "val loss", False),
        Column("e2e", "bleu", "BLEU"),
        Column("e2e", "nist", "NIST", False),
        Column("e2e", "meteor", "METEOR", False),
        Column("e2e", "rouge_l", "ROUGE_L", False),
        Column("e2e", "cider", "CIDEr", False),
    ),
}
# The last column of Table 2.
AVERAGE = Column("average", "mean of the eight tasks", "Avg")

# The score that stands for a task.
_HEADLINES = ("accuracy", "matthews", "pearson", "bleu", "logical_form", "rouge_1")
HEADLINES = {
    column.task: column
    for number in (2, 3, 4, 13, 14)
    for column in COLUMNS[number]
    if column.metric in _HEADLINES
}
