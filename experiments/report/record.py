"""A run record as the report reads it, and the labels of models and weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_jax.data.glue_text import OF_GLUE

# Tasks of which the paper scores the validation split, not test; GLUE's other pairs as MNLI.
_VALIDATED = ("wikisql", *OF_GLUE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """What the report needs of a run record, or of several records whose seeds are pooled.

    Attributes:
      workdirs: run folders, relative to the parent of the folder named on the command line.
      task: such as sst2 or e2e.
      split: the decoded split of a data-to-text run; "" for GLUE.
      model: label, see `model_label`.
      method: name; `none` is the pre-trained model without adaptation.
      trained: number of trained values, without the task's head.
      scores: one value per seed by metric; NaN where the seed diverged.
      seeds: in the order of the values.
      weights: adapted attention weights as letters of q, k, v, o; None unless LoRA adapts exactly these.
      rank: of LoRA; None if there are several ranks.
      config: of the run, as JSON values.
      raw: the whole JSON object of every pooled record.
    """

    workdirs: tuple[str, ...]
    task: str
    split: str
    model: str
    method: str
    trained: int
    scores: Mapping[str, tuple[float, ...]]
    seeds: tuple[str, ...]
    weights: str | None
    rank: int | None
    config: Mapping[str, Any]
    raw: tuple[Mapping[str, Any], ...]

    @property
    def workdir(self) -> str:
        """The run folders as text."""
        return " + ".join(self.workdirs)

    @property
    def label(self) -> str:
        """The method with weights and rank: `lora W_q, W_v r=8`."""
        weights = f" {weights_label(self.weights)}" if self.weights else ""
        return self.method + weights + (f" r={self.rank}" if self.rank else "")

    @property
    def evaluated_on(self) -> str:
        """What was scored; "" for the whole split that the paper scores."""
        data = self.config["data"]
        if not self.split:
            limit = data.get("max_eval_examples", 0)
            return f"{limit:,} dev examples" if limit else ""
        scored = "valid" if self.task in _VALIDATED else "test"
        split = f"{self.split} split" if self.split != scored else ""
        limit = data.get("max_prompts", 0)
        return ", ".join([split] * bool(split) + [f"{limit:,} inputs"] * bool(limit))

    @property
    def examples(self) -> int | None:
        """Training examples per epoch; None if nothing was trained."""
        first_seed: Mapping[str, Any] = next(iter(self.raw[0]["seeds"].values()), {})
        if "examples" not in first_seed:
            return None
        return round(first_seed["examples"] / self.config["epochs"])

    @property
    def trained_on_part(self) -> bool:
        """Whether the run saw only a part of the training set."""
        limit = self.config["data"].get("max_examples", 0)
        return self.examples is not None and 0 < limit <= self.examples

    @property
    def restricted(self) -> bool:
        """Whether the set-up is that of Table 2's † rows: length 128, no start from MNLI."""
        return self.config["data"].get("max_length") == 128 and not self.config.get("init_adapter")


def weights_label(weights: str) -> str:
    """The paper's names of weights: `qv` -> `W_q, W_v`."""
    return ", ".join(f"W_{letter}" for letter in weights)


def model_label(name: str) -> str:
    """A short name of a model: `package:NAME` -> NAME; the last two parts of a path; a hub name as it is."""
    return "/".join(Path(name.removeprefix("package:")).parts[-2:]).lstrip("/")
