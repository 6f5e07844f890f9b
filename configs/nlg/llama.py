"""A large model of Llama's kind, given by name, with the hyperparameters of the paper's Table 12: Table 4.

    python -m experiments.nlg --config=configs/nlg/llama.py:wikisql,lora --workdir=runs/llama_wikisql_lora \\
        --config.model.name=NAME --config.data.source=FOLDER

NAME is a folder, a GGUF file, or a name of the hub, of any family of docs/decoders.md; without it Llama 2 7B.
The argument is `DATASET,METHOD`, as of configs/nlg/gpt2_xl.py, whose head has the paper's numbers. These
models have no biases: bitfit adds some. Their keys and values may be narrower than their queries, so rows of
one number of values in the paper need not have one here.
"""

from configs.nlg import common


def get_config(arg: str = "wikisql,lora") -> common.ConfigDict:
    """Returns the config of `dataset,method`."""
    dropout = {"attention_dropout": 0.0}
    return common.table_12_config(arg, "meta-llama/Llama-2-7b-hf", fused=False, dropout=dropout)
