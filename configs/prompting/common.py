"""What all configs of experiments.prompting share: all fields with their defaults."""

from __future__ import annotations

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def prompting_config(task: str, model: str) -> ConfigDict:
    """All fields: two demonstrations of each class, as in Table 8 for MNLI, and five draws of them.

    Args:
      task: of GLUE.
      model: a folder, `package:NAME`, or a hub name.
    """
    return ConfigDict(
        {
            "task": task,
            "form": "question",  # or text: that of experiments.nlg
            "shots": 2,  # demonstrations of each class; 0: zero-shot, with one seed
            "seeds": (0, 1, 2, 3, 4),  # a draw of demonstrations for each
            "model": {"name": model, "base_format": "float", "attention": "auto"},
            "adapter": "",  # a run of experiments.nlg whose model is asked
            "adapter_task": placeholder(str),  # its data set, if it is another one on purpose
            "data": {
                "source": "tfds",  # or tfds:DIR, or a folder with the original GLUE TSV files
                "max_eval_examples": 0,  # of the dev set, the first ones; 0 is all
            },
        }
    )
