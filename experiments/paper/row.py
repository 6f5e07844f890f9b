"""One row of the paper's Tables 2, 3, 4 and 15: model, method, and the printed figure."""

from __future__ import annotations

import dataclasses

from lora_jax.method import Method


@dataclasses.dataclass(frozen=True)
class PaperRow:
    """One row of a table.

    Attributes:
      table: number of the table.
      row: name as printed; `*` marks prior work, `†` the restricted set-up.
      model: a key of `experiments.paper.counts.MODELS`.
      method: decides what trains.
      paper: the printed figure, such as 0.35M.
      reason: why our count does not round to the figure; None where it does.
      settings_known: whether the paper gives the method's setting; false where it is inferred.
      note: anything else that a reader needs to know.
    """

    table: int
    row: str
    model: str
    method: Method
    paper: str
    _: dataclasses.KW_ONLY
    reason: str | None = None
    settings_known: bool = True
    note: str | None = None
