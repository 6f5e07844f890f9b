"""What all plans share: what is compiled, for which mesh, and what a search tries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from configs.training import training_fields


def plan_config(
    size: str,
    method: Mapping[str, Any],
    *,
    mesh: Mapping[str, int],
    rows: int,
    length: int,
    outputs: int,
    remat: str = "none",
    model_axis: Sequence[int] = (1,),
    search_rows: Sequence[int] = (),
    **training: Any,
) -> ConfigDict:
    """All fields of a plan.

    Args:
      size: name of a model in `models.encoder.SIZES` or `models.decoder.SIZES`.
      method: compared with full fine-tuning.
      mesh: sizes of the mesh's axes; one may be -1.
      rows, length: token rows of a batch (of all devices), and tokens of a row.
      outputs: of a row: examples of a classifier, predicted tokens of a language model.
      remat: what the backward pass recomputes, see `Stack`.
      model_axis, search_rows: what --search tries, besides all divisions into data and fsdp.
      training: fields of `training_fields`.
    """
    return ConfigDict(
        {
            **training_fields(),
            "base_dtype": "bfloat16",
            "model": {"size": size, "remat": remat, "unroll": 1},
            "method": dict(method),
            "mesh": dict(mesh),
            "rows": rows,
            "length": length,
            "outputs": outputs,
            "search": {"model": tuple(model_axis), "rows": tuple(search_rows) or (rows,)},
            **training,
        }
    )
