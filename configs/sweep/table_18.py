"""Table 18: LoRA's rank on E2E, W_q and W_v; the small GPT-2, SmolLM2, or GPT-2 medium as in the paper.

    python -m experiments.sweep --config=configs/sweep/table_18.py:small --workdir=runs/table_18/small \\
        --config.run.data.source=FOLDER
    python -m experiments.sweep --config=configs/sweep/table_18.py:smollm2 --workdir=runs/table_18/smollm2 \\
        --config.run.data.source=FOLDER
    python -m experiments.sweep --config=configs/sweep/table_18.py:gpt2_medium \\
        --workdir=runs/table_18/medium --config.run.data.source=FOLDER

The paper, GPT-2 medium after 26,000 steps:

| r    | val_loss | BLEU  | NIST   | METEOR | ROUGE-L | CIDEr  |
|------|----------|-------|--------|--------|---------|--------|
| 1    | 1.23     | 68.72 | 8.7215 | 0.4565 | 0.7052  | 2.4329 |
| 2    | 1.21     | 69.17 | 8.7413 | 0.4590 | 0.7052  | 2.4639 |
| 4    | 1.18     | 70.38 | 8.8439 | 0.4689 | 0.7186  | 2.5349 |
| 8    | 1.17     | 69.57 | 8.7457 | 0.4636 | 0.7196  | 2.5196 |
| 16   | 1.16     | 69.61 | 8.7483 | 0.4629 | 0.7177  | 2.4985 |
| 32   | 1.16     | 69.33 | 8.7736 | 0.4642 | 0.7105  | 2.5255 |
| 64   | 1.16     | 69.24 | 8.7174 | 0.4651 | 0.7180  | 2.5070 |
| 128  | 1.16     | 68.73 | 8.6718 | 0.4628 | 0.7127  | 2.5030 |
| 256  | 1.16     | 68.92 | 8.6982 | 0.4629 | 0.7128  | 2.5012 |
| 512  | 1.16     | 68.78 | 8.6857 | 0.4637 | 0.7128  | 2.5025 |
| 1024 | 1.17     | 69.37 | 8.7495 | 0.4659 | 0.7149  | 2.5090 |

One run per rank, as in the paper, which gives no spread. Alpha is Table 11's 32 at all ranks: Table 18 does
not name it, and section 4.1 keeps the first one. The paper tuned its hyperparameters at r = 4.

Variants: `small` (default) is configs/nlg/small.py:e2e,lora, with learning rate 5e-3 and one epoch; its
matrices are 256 wide, so its ranks end at 256. Pre-train it first, its file says how. `smollm2` is
configs/nlg/smollm2.py:e2e,lora, on 3,000 training rows; its W_v has 192 outputs, so ranks end at 128.
`gpt2_medium` is configs/nlg/gpt2_medium_lora.py:e2e, Table 11's values, 5 epochs (26,290 steps), ranks to
1024.

A program pads its factors to its largest rank. With --config.runs_per_program=4 small ranks do not pay for
1024: programs take points in the order of their ranks. More seeds: --config.grids.ranks.seeds="(0,1,2)".
"""

from __future__ import annotations

from configs.nlg import gpt2_medium_lora, small, smollm2
from configs.sweep.common import ConfigDict, sweep_config

_RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
MODELS = ("small", "smollm2", "gpt2_medium")


def get_config(arg: str = "small") -> ConfigDict:
    """Returns the config of a model: `small`, `smollm2` or `gpt2_medium`."""
    if arg not in MODELS:
        raise ValueError(f"unknown model {arg!r}; known are {list(MODELS)}")
    if arg == "small":
        run, widest = small.get_config("e2e,lora"), 256
    elif arg == "smollm2":
        run, widest = smollm2.get_config("e2e,lora"), 128
    else:
        run, widest = gpt2_medium_lora.get_config("e2e"), 1024
    # E2E's longest training example has 115 tokens of GPT-2, 125 of the small model's tokenizer, and
    # fewer than 128 of SmolLM2's.
    run.data.row_length = 128
    ranks = tuple(rank for rank in _RANKS if rank <= widest)
    return sweep_config("nlg", run, {"ranks": {"method": {"rank": ranks}, "seeds": (0,)}})
