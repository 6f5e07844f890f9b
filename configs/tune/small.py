"""The small GPT-2 of experiments.pretrain on your own texts, for machines without a hub.

    python -m experiments.pretrain --config=configs/pretrain/small.py --workdir=runs/small_gpt2 \\
        --config.data.source=FOLDER
    python -m experiments.tune --config=configs/tune/small.py --workdir=runs/mine \\
        --config.data.train=FILE.jsonl
    python -m experiments.tune --config=configs/tune/small.py:instructions --workdir=runs/instructions \\
        --config.data.train=FOLDER/instruction-data.json

Behind the colon: the form of the data, see configs/tune/common.py; without it the columns `prompt` and
`completion`. The method too, `small.py:full` or `small.py:gsm8k,dora`. GPT-2 has no chat template, so a
prompt and its completion are texts, one behind the other.
"""

from configs.nlg.small import LEARNING_RATE, METHODS
from configs.tune import common


def get_config(arg: str = "") -> common.ConfigDict:
    """Returns the config for data of a form (`instructions`, `gsm8k` or one's own) and a method."""
    rates = {**LEARNING_RATE, "lora": 2e-3}
    config = common.tune_config("runs/small_gpt2/model", arg, METHODS, rates)
    config.data.format = "text"
    if not common.parse(arg)[0]:
        config.data.separator = "\n"
    return config
