"""The rows of the paper's Tables 2, 3, 4 and 15 as data: model, method, and the printed figure.

A row whose count does not round to the printed figure has a `reason`. Where the paper does not give
a row's setting, `settings_known` is false and the `note` says what the setting here rests on.
"""

from __future__ import annotations

import dataclasses

from lora_jax.method import Method
from lora_jax.methods import (
    adapter_d,
    adapter_h,
    adapter_l,
    adapter_p,
    bitfit,
    full,
    lora,
    prefix_embed,
    prefix_layer,
    top_layers,
)
from lora_jax.models.hub import HEAD

TITLES = {
    2: "GLUE with RoBERTa and DeBERTa XXL",
    3: "E2E with GPT-2 medium and large",
    4: "WikiSQL, MNLI and SAMSum with GPT-3 175B",
    15: "the sweep of settings on GPT-3 175B",
}


@dataclasses.dataclass(frozen=True)
class PaperRow:
    """One row of a table.

    Attributes:
      table: number of the table.
      row: name as in the paper; `*` is prior work, `†` the restricted setup.
      model: a key of `parameters.MODELS`.
      method: what is trained.
      paper: the printed figure, such as 0.35M.
      reason: why the count does not round to the figure; None where it does.
      settings_known: whether the paper gives the method's setting; false where it is inferred.
      note: anything else a reader needs to know.
    """

    table: int
    row: str
    model: str
    method: Method
    paper: str
    reason: str | None = None
    settings_known: bool = True
    note: str | None = None


_QUERY_VALUE = r".*/attention/(query|value)"
_QKV, _OUTPUT = r".*/attention/qkv", r".*/attention/output"


def _qkv(rank: int, parts: str = "qv", alpha: float | None = None, output: bool = False) -> Method:
    """LoRA on parts of the fused projection of GPT, and on the output's if asked for."""
    targets: dict[str, dict] = {_QKV: {"parts": tuple(parts), "fused": ("q", "k", "v")}}
    return lora({**targets, **({_OUTPUT: {}} if output else {})}, rank=rank, alpha=alpha)


def _all_four(rank: int) -> Method:
    return _qkv(rank, "qkv", output=True)


# --- Table 2 --------------------------------------------------------------------------------------

_ROUND = (
    "The figure is the {size} of the model's authors with a decimal added. Ours leaves out the "
    "checkpoint's pooler, which no GLUE run uses; with it there are {whole}."
)
_BINARY = (
    "The figure is the kernels alone, 2 d r per adapter, in units of 2^20: {kernels} are {units} of "
    "them. Ours has the biases too, as the paper's formula."
)


def _base(name: str, method: Method, paper: str, **rest: object) -> PaperRow:
    return PaperRow(2, f"RoB-base ({name})", "roberta-base", method, paper, **rest)  # type: ignore[arg-type]


def _large(name: str, method: Method, paper: str, **rest: object) -> PaperRow:
    return PaperRow(2, f"RoB-large ({name}", "roberta-large", method, paper, **rest)  # type: ignore[arg-type]
