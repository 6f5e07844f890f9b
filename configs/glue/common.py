"""What all GLUE configs share: fields with their defaults, and columns of the paper's tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs.arguments import parse
from configs.training import order_fields, training_fields

# Column order of the paper's Tables 2 and 9.
TASKS = ("mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb")
QUERY_VALUE = r".*/attention/(query|value)"  # what the paper adapts (section 4.2)


def row(table: Mapping[str, Sequence[Any]], task: str) -> dict[str, Any]:
    """A task's column of a table of hyperparameters.

    WNLI is not in the paper; it takes RTE's values. An unknown task takes those of the first column: the
    experiment refuses it later, with the names of the known tasks.

    Args:
      table: values by field, in the order of `TASKS`.
      task: name.
    """
    column = TASKS.index({"wnli": "rte"}.get(task, task)) if task in (*TASKS, "wnli") else 0
    return {name: values[column] for name, values in table.items()}


def glue_config(task: str, model: str, method: Mapping[str, Any]) -> ConfigDict:
    """All fields, with the defaults of the paper's GLUE scripts.

    Args:
      task: name.
      model: a folder, `package:NAME`, or a hub name.
      method: name of a method and its arguments, see `lora_jax.methods`.
    """
    return ConfigDict(
        {
            **training_fields(),
            "task": task,
            # In the dropout rates None keeps what the model's config.json says.
            "model": {
                "name": model,
                "hidden_dropout_prob": 0.1,
                "attention_probs_dropout_prob": 0.1,
                "unroll": 1,
                "base_format": "float",
                "remat": "none",
                "attention": "auto",
            },
            "method": dict(method),
            "seeds": (0, 1, 2, 3, 4),  # the paper: median of 5 seeds; it does not say which
            "epochs": 10,
            "batch_size": 32,
            "learning_rate": 1e-4,
            "warmup_ratio": 0.06,
            "weight_decay": 0.1,
            "max_grad_norm": 1.0,
            "adam": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
            "data": {
                **order_fields(),
                "source": "tfds",  # or tfds:DIR, or a folder with the original GLUE TSV files
                "max_length": 512,
                "max_examples": 0,  # of the training set; 0 is all
                "balanced": placeholder(bool),  # True: as many of each class, as in Table 16
                "max_eval_examples": 0,
            },
            "init_adapter": "",  # a run whose LoRA factors start this one (MNLI for mrpc, rte, stsb)
            "eval_only": False,
            "adapter": "",  # with eval_only: the run to evaluate
            "adapter_task": placeholder(str),  # its task, if it is another one on purpose
        }
    )


def adapter_config(
    argument: str, name: str, variants: Mapping[str, tuple[int, Mapping[str, Sequence[Any]]]]
) -> ConfigDict:
    """RoBERTa-large with adapters in the set-up of Table 2's † rows: length 128, no start from MNLI.

    Batch size 32 and warm-up 0.06 are Table 9's; the public adapter scripts (MNLI only) have warm-up
    0.1. Their weight decay of 0 is used here, since the paper does not give one.

    Args:
      argument: `TASK` or `TASK,variant`.
      name: of the method.
      variants: by name, the adapter size and columns of Table 9.
    """
    task, variant = parse(argument, tuple(variants))
    size, table = variants[variant]
    config = glue_config(task, "roberta-large", {"name": name, "size": size})
    config.update(row(table, task))
    config.weight_decay = 0.0
    config.data.max_length = 128
    return config
