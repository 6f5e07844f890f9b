"""How a run is judged, and what it gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from lora_jax.partition import Params
from lora_jax.training.progress import Progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goal:
    """How a run is judged after every epoch.

    Attributes:
      label: shown at the progress bar.
      headline: the metric that chooses the best epoch.
      evaluate: metrics of the trainable parameters, with which goes what moved of the model's state.
      on_best: called after each epoch that is the best so far.
      smaller_is_better: whether a smaller headline is the better one.
      on_resume: called with the progress of the checkpoint that a run goes on from; it raises if what
        `on_best` made is not there any more.
    """

    label: str
    headline: str
    evaluate: Callable[[Params], dict[str, float]]
    on_best: Callable[[Params, Progress], None]
    smaller_is_better: bool = False
    on_resume: Callable[[Progress], None] = lambda progress: None


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What `Trainer.fit` gives.

    Attributes:
      best: trainable parameters (and statistics that moved) after the best epoch, as the folder's
        adapter holds them.
      progress: what was done, with the metrics of every epoch.
      record: the content of result.json.
    """

    best: Params
    progress: Progress
    record: dict[str, Any]
