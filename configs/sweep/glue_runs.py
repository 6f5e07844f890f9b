"""The runs that sweeps on GLUE vary: `TASK` or `TASK,MODEL`, each set up as the model's config has it.

| MODEL             | set-up                                | alpha | seeds                                 |
|-------------------|---------------------------------------|-------|---------------------------------------|
| minilm (default)  | configs/glue/minilm_weights.py:TASK   | 16    | 3; on mrpc with all 3,668 examples    |
| roberta_base      | configs/glue/roberta_base_lora.py     | 8     | 5, Table 9's values                   |
| roberta_large     | configs/glue/roberta_large_lora.py    | 16    | 5, Table 9's values                   |

Alpha is one number for all ranks, as in the paper (section 4.1: the first rank tried, then left alone).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.arguments import parse
from configs.glue import minilm_weights, roberta_base_lora, roberta_large_lora
from configs.glue.common import TASKS

MODELS = ("minilm", "roberta_base", "roberta_large")

# Runs with different orders of the data share rows of one length, see `lora_jax.data.batches`. The 512
# tokens that Table 9 allows an example would waste room on short tasks. RoBERTa's longest examples in the
# original training files have 47, 67, 104 and 125 tokens; a longer one would be an error, never cut.
_ROW_LENGTH = {"cola": 128, "sst2": 128, "mrpc": 192, "stsb": 192}


def run_config(argument: str) -> tuple[ConfigDict, str]:
    """The config of one run of `TASK` or `TASK,MODEL` on W_q and W_v at rank 8, and the model's name.

    Raises:
      ValueError: an unknown task or model; the message names the known ones.
    """
    task, model = parse(argument, MODELS, "model")
    if task not in (known := (*TASKS, "wnli")):
        raise ValueError(f"unknown task {task!r} in {argument!r}; known are {list(known)}")
    if model == "minilm":
        config = minilm_weights.get_config(f"{task},qv,8")
        config.data.row_length = 0  # data.max_length
        if task == "mrpc":
            config.data.max_examples = 0
    else:
        module = roberta_base_lora if model == "roberta_base" else roberta_large_lora
        config = module.get_config(task)
        config.data.row_length = _ROW_LENGTH.get(task, 0)
    return config, model
