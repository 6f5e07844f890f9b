"""What all configs of experiments.nlg share: fields, and the values of Table 11 and of Li and Liang 2021."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs.arguments import parse
from configs.nlg import table_12
from configs.training import decoder_fields, order_fields, training_fields

DATASETS = ("e2e", "webnlg", "dart")

# Section 4.2: q and v of the fused projection, a factor pair for each; Table 11: r = 4, alpha = 32.
LORA: dict[str, Any] = {
    "name": "lora",
    "targets": r".*/attention/qkv",
    "parts": ("q", "v"),
    "fused": ("q", "k", "v"),
    "rank": 4,
    "alpha": 32.0,
}

# Table 11, in the order of DATASETS.
_TABLE_11 = {
    "weight_decay": (0.01, 0.01, 0.0),
    "label_smoothing": (0.1, 0.1, 0.0),
    "length_penalty": (0.9, 0.8, 0.8),  # the public README's command for E2E says 0.8
    "dropout": (0.1, 0.1, 0.0),  # of the LoRA branch
}

# Baselines of Li and Liang 2021, whom the paper follows (section D.3): in the order of DATASETS.
_LI_AND_LIANG = {
    "full": {"learning_rate": (5e-5, 1e-5, 1e-5), "epochs": (5, 10, 10), "batch_size": (10, 6, 6)},
    "top2": {"learning_rate": (5e-5,) * 3, "epochs": (5, 10, 5), "batch_size": (10, 9, 5)},
    "adapter 3%": {"learning_rate": (5e-5,) * 3, "epochs": (5,) * 3, "batch_size": (5,) * 3},
    "adapter 0.1%": {
        "learning_rate": (8e-5, 5e-5, 8e-5),
        "epochs": (10, 10, 5),
        "batch_size": (5,) * 3,
    },
    "prefix": {"learning_rate": (8e-5, 5e-5, 5e-5), "epochs": (5, 5, 10), "batch_size": (10, 5, 5)},
}


def column(dataset: str, table: Mapping[str, Sequence[Any]] = _TABLE_11) -> dict[str, Any]:
    """A data set's column of a table of hyperparameters.

    An unknown data set takes E2E's values: the experiment refuses it later, with the known names.

    Args:
      dataset: name.
      table: values by field, in the order of `DATASETS`.
    """
    index = DATASETS.index(dataset) if dataset in DATASETS else 0
    return {name: values[index] for name, values in table.items()}


# The paper trains GPT-2 without the model's dropout.
_GPT2_DROPOUT = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}


def nlg_config(
    dataset: str,
    model: str,
    method: Mapping[str, Any],
    dropout: Mapping[str, float] = MappingProxyType(_GPT2_DROPOUT),
) -> ConfigDict:
    """All fields, with the values of Table 11, or for the data sets of Table 12 with what these need.

    Args:
      dataset: e2e, webnlg or dart, or one of `table_12.DATASETS`.
      model: a folder, `package:NAME`, or a hub name.
      method: name of a method and its arguments, see `lora_jax.methods`.
      dropout: rates of the model, by their names in its config.json.
    """
    table_11 = column(dataset)
    of_gpt3 = dataset in table_12.DATASETS
    if method["name"] == "lora":
        method = {**method, "dropout": 0.0 if of_gpt3 else table_11["dropout"]}
    config = ConfigDict(
        {
            # adam.epsilon is "after", as AdamW is defined; in the public GPT-2 code it is "before".
            **training_fields(),
            "dataset": dataset,
            "model": {**decoder_fields(model), **dropout},
            "method": dict(method),
            "loftq": False,
            "seeds": (0, 1, 2),  # the paper: mean of 3 seeds; the public command has one seed, 110
            "epochs": 5,  # 0: no adaptation; the base model is decoded
            "batch_size": 8,
            "learning_rate": 2e-4,
            "warmup_steps": 500,
            "weight_decay": table_11["weight_decay"],
            "label_smoothing": table_11["label_smoothing"],
            "data": {
                **order_fields(),
                "source": "data",  # the folder of the original files
                "max_length": 512,  # longer rows are cut; the longest real one has 259 tokens
                "max_examples": 0,  # of the training set; 0 is all
                "balanced": placeholder(bool),  # True: as many of each class, as in Table 16
                "max_eval_examples": 0,  # rows of the validation set
                "max_prompts": 0,  # distinct inputs of the decoded split; 0 is all
                "decode_split": "test",
            },
            "decode": {
                "beams": 10,
                "length_penalty": table_11["length_penalty"],
                "no_repeat_ngram": 4,
                "max_tokens": 64,
                "batch_size": 16,  # prompts, each with `beams` continuations
            },
            "eval_only": False,
            "adapter": "",  # with eval_only: the run to decode and score
            "adapter_task": placeholder(str),  # its data set, if it is another one on purpose
            "checkpoint_every": 1000,
        }
    )
    if of_gpt3:
        config.data.train_split = "train"
        config.update_from_flattened_dict(table_12.of_dataset(dataset))
    return config


def table_12_config(
    argument: str,
    model: str,
    *,
    fused: bool,
    dropout: Mapping[str, float] = MappingProxyType(_GPT2_DROPOUT),
) -> ConfigDict:
    """A row of Table 4 on another model, with the values of Table 12.

    Args:
      argument: `dataset,method` of `table_12.DATASETS` and `table_12.table_4`.
      model: a folder, `package:NAME`, or a hub name.
      fused: see `table_12.lora`.
      dropout: as of `nlg_config`.

    Raises:
      ValueError: an unknown data set or method; the message names the known ones.
    """
    rows = table_12.table_4(fused)
    dataset, method = parse(argument, list(rows), "method")
    table_12.check(dataset, argument)
    config = nlg_config(dataset, model, rows[method], dropout)
    config.update(table_12.of_method(dataset, rows[method]))
    config.seeds = (0,)
    return config


def li_and_liang_config(
    dataset: str, model: str, method: Mapping[str, Any], baseline: str
) -> ConfigDict:
    """A baseline: learning rate, epochs and batch size of Li and Liang 2021, the rest as for LoRA.

    These three are all that is published: the rows' warm-up, label smoothing and weight decay are not known.

    Args:
      dataset: e2e, webnlg or dart.
      model: a folder, `package:NAME`, or a hub name.
      method: name of a method and its arguments.
      baseline: a key of `_LI_AND_LIANG`.
    """
    config = nlg_config(dataset, model, method)
    config.update(column(dataset, _LI_AND_LIANG[baseline]))
    return config


def full_config(dataset: str, model: str) -> ConfigDict:
    """Full fine-tuning."""
    return li_and_liang_config(dataset, model, {"name": "full"}, "full")


def adapter_l_config(argument: str, model: str, *, small: int, large: int) -> ConfigDict:
    """Adapter L.

    Args:
      argument: `dataset,small` (0.1% of the model) or `dataset,large` (3%).
      model: name.
      small, large: bottleneck sizes of the two.
    """
    variants = {"small": ("adapter 0.1%", small), "large": ("adapter 3%", large)}
    dataset, variant = parse(argument, tuple(variants))
    baseline, size = variants[variant]
    return li_and_liang_config(dataset, model, {"name": "adapter_l", "size": size}, baseline)


def prefix_layer_config(dataset: str, model: str) -> ConfigDict:
    """Prefix-layer tuning with as many values as LoRA of rank 4 on q and v: 16 d in a layer."""
    method = {"name": "prefix_layer", "prefix": 16, "infix": 0}
    return li_and_liang_config(dataset, model, method, "prefix")
