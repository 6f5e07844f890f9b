"""What all plans share: the program to compile, its mesh, and what a search tries."""

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
    runs: int = 1,
    search_runs: Sequence[int] = (),
    run_axis: Sequence[int] = (),
    single_mesh: Mapping[str, int] | None = None,
    packed: Sequence[str] = (),
    **training: Any,
) -> ConfigDict:
    """All fields of a plan.

    Args:
      size: name of a model in the SIZES of `models.encoder`, `deberta_config`, `gpt2` or `llama_sizes`.
      method: compared with full fine-tuning.
      mesh: sizes of the mesh's axes; one may be -1. The axis `run` splits the runs of a sweep.
      rows, length: rows of a run's batch over all devices, and tokens per row.
      outputs: per row: examples of a classifier, predicted tokens of a language model.
      remat: what the backward pass recomputes, see `Stack`.
      model_axis, search_rows: sizes of the axis `model` and numbers of rows that --search tries, with all
        divisions of the other devices into `data` and `fsdp`.
      runs: number of runs in a sweep's program, all of the method's rank (the largest of the sweep, to
        which the others are padded); 1 is a run alone.
      search_runs, run_axis: numbers of runs and sizes of the axis `run` that --search tries; by default
        `runs`, and every size that divides runs and devices.
      single_mesh: the mesh of one run at a time, which a sweep is compared with. Axes that are missing or
        0 are those of `mesh`, with `run` joined to `data`.
      packed: forms of the base that the method is planned over, beside one of floating-point numbers.
      training: values for fields of `training_fields`.
    """
    return ConfigDict(
        {
            **training_fields(),
            "base_dtype": "bfloat16",
            "model": {
                "size": size,
                "base_format": "float",
                "remat": remat,
                "unroll": 1,
                "attention": "auto",
            },
            "packed": tuple(packed),
            "method": dict(method),
            "mesh": {"run": 1, **mesh},
            "runs": runs,
            # Order of the examples: "own", a batch for each run, or "shared", one batch for all runs.
            "orders": "own",
            "single_mesh": {"data": 0, "fsdp": 0, "model": 0, **(single_mesh or {})},
            "rows": rows,
            "length": length,
            "outputs": outputs,
            "search": {
                "model": tuple(model_axis),
                "rows": tuple(search_rows) or (rows,),
                "runs": tuple(search_runs),
                "run": tuple(run_axis),
            },
            **training,
        }
    )
