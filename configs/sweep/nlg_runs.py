"""The runs that sweeps on the paper's data sets for GPT-3 vary: `DATASET` or `DATASET,MODEL`.

| MODEL             | set-up                                  | model                                       |
|-------------------|-----------------------------------------|---------------------------------------------|
| smollm2 (default) | configs/nlg/smollm2.py:DATASET,lora     | SmolLM2-135M, a part of the training set     |
| small             | configs/nlg/small.py:DATASET,lora       | the small GPT-2 of experiments.pretrain      |
| gpt2_xl           | configs/nlg/gpt2_xl.py:DATASET,lora     | GPT-2 XL, Table 12's values                  |
| llama             | configs/nlg/llama.py:DATASET,lora       | by --config.run.model.name, Table 12's       |

DATASET is wikisql or mnli_text, as in the paper, or another one of configs/nlg/table_12.py; with the first
two models also e2e, which is decoded with beams as in Table 3.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from configs.arguments import parse
from configs.nlg import gpt2_xl, llama, small, smollm2, table_12

MODELS = {"smollm2": smollm2, "small": small, "gpt2_xl": gpt2_xl, "llama": llama}
_E2E, _OF_E2E = "e2e", ("smollm2", "small")  # the models whose set-up is for it, too
_FUSED = ("small", "gpt2_xl")  # queries, keys and values are one matrix
# Learning rates by method of the models that have their own.
OURS = {"smollm2": smollm2.LEARNING_RATE, "small": small.LEARNING_RATE}


def is_dataset(argument: str) -> bool:
    """Whether an argument names one of these data sets, and not a task of GLUE."""
    return argument.partition(",")[0] in (_E2E, *table_12.DATASETS)


def run_config(argument: str) -> tuple[ConfigDict, bool, dict[str, float]]:
    """The config of one run with LoRA.

    Args:
      argument: `DATASET` or `DATASET,MODEL`.

    Returns:
      The config; whether the model has queries, keys and values in one matrix; learning rates by method.

    Raises:
      ValueError: an unknown data set or model; the message names the known ones.
    """
    dataset, model = parse(argument, tuple(MODELS), "model")
    if dataset != _E2E or model not in _OF_E2E:
        table_12.check(dataset, argument)
    config, fused = MODELS[model].get_config(f"{dataset},lora"), model in _FUSED
    whole = {k: v for k, v in config.method.to_dict().items() if k not in ("parts", "fused")}
    config.method = ConfigDict({**whole, "targets": table_12.weights("qv", fused)})
    return config, fused, dict(OURS.get(model, table_12.RATES))


def labelled(letters: tuple[str, ...], fused: bool) -> dict[str, Any]:
    """Targets by the letters of the weights that they are."""
    return {each: table_12.weights(each, fused) for each in letters}
