"""Sweeps on tiny models for the tests, and whether a sweep's points are what their runs alone are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from configs.glue import minilm
from configs.nlg import small
from configs.sweep.common import sweep_config
from experiments import glue
from experiments.runs.data_to_text import DataToTextTask
from experiments.runs.run import run_all
from lora_jax.run_folder import flat

GLUE = {
    "data.max_length": 48, "batch_size": 16, "epochs": 2, "log_every": 1, "checkpoint_every": 3,
    "learning_rate": 0.01,
}  # fmt: skip
STEPS = 8  # 60 examples in batches of 16, two epochs
NLG = {
    "epochs": 2, "batch_size": 10, "warmup_steps": 2, "learning_rate": 0.02, "log_every": 1,
    "checkpoint_every": 2, "decode.beams": 2, "decode.max_tokens": 6, "decode.batch_size": 4,
}  # fmt: skip
# Of a record: time, memory, and what belongs to the machine.
TIMES = (
    "seconds", "compile_seconds", "evaluation_seconds", "waiting_seconds", "examples_per_second",
    "tokens_per_second", "flops_per_second_and_device", "mfu", "memory", "device", "process", "versions",
    "decode", "digests",
)  # fmt: skip
# Of a program, which a run alone is not: padded ranks are computed with, rows are as many as the run
# that needs most of them has, and tokens are the runs' mean.
OF_PROGRAMS = ("flops", "slots", "tokens", "padding_efficiency", "shapes", "sweep", "mesh")


def glue_sweep(
    model: Path, data: Path, grids: dict, task: str = "rte", method: str = "lora", runs: int = 3,
    **fields: Any,
) -> ConfigDict:  # fmt: skip
    """A sweep over GLUE runs; fields of the run have __ for dots."""
    run = minilm.get_config(f"{task},{method}")
    run.update_from_flattened_dict({**GLUE, "model.name": str(model), "data.source": str(data)})
    return _swept("glue", run, grids, runs, fields)


def nlg_sweep(folder: Path, grids: dict, runs: int = 3, **fields: Any) -> ConfigDict:
    """A sweep over E2E runs."""
    run = small.get_config("e2e,lora")
    named = {"model.name": str(folder / "gpt2"), "data.source": str(folder)}
    run.update_from_flattened_dict({**NLG, **named})
    return _swept("nlg", run, grids, runs, fields)


def _swept(experiment: str, run: ConfigDict, grids: dict, runs: int, fields: dict) -> ConfigDict:
    run.update_from_flattened_dict({name.replace("__", "."): v for name, v in fields.items()})
    result = sweep_config(experiment, run, grids)
    result.runs_per_program = runs
    return result


def alone(point: Path, folder: Path) -> Path:
    """Runs a point of a sweep by its own experiment, from the config that the point has written."""
    config = ConfigDict(json.loads((point / "config.json").read_text()))
    config.mesh.run = 1
    if "task" in config:
        run_all(glue.task, config, folder)
    else:
        run_all(DataToTextTask, config, folder)
    return folder


def record(folder: Path) -> dict[str, Any]:
    """The run record."""
    return json.loads((folder / "result.json").read_text())


def lines(folder: Path) -> list[dict[str, Any]]:
    """Of metrics.jsonl of a run's only seed."""
    (file,) = folder.glob("seed_*/metrics.jsonl")
    return [json.loads(text) for text in file.read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    """The loss of every step."""
    return [line["loss"] for line in lines(folder) if "loss" in line]


def factors(folder: Path) -> dict[str, np.ndarray]:
    """The adapter's arrays."""
    return load_file(folder / "adapter/adapter.safetensors")


def without(value: Any, names: tuple[str, ...]) -> Any:
    """A record without some of its fields, at any depth."""
    if isinstance(value, dict):
        return {k: without(v, names) for k, v in value.items() if k not in names}
    return [without(item, names) for item in value] if isinstance(value, list) else value


def assert_same(point: Path, other: Path, rtol: float = 1e-5, atol: float = 1e-5) -> None:
    """A point's record, log and adapter are another run's, but for the rounding of float32."""
    ignored = (*TIMES, *OF_PROGRAMS)
    one, two = (flat(without(record(f), ignored)) for f in (point, other))
    assert one.keys() == two.keys()
    for name in one:
        _assert_close(one[name], two[name], rtol, atol, f"{point.name}: {name}")
    one, two = lines(point), lines(other)
    assert [line.keys() for line in one] == [line.keys() for line in two]
    for line, other_line in zip(one, two, strict=True):
        for name in line:
            _assert_close(
                line[name], other_line[name], rtol, atol, f"{point.name}: {name}, {line['step']}"
            )
    one, two = factors(point), factors(other)
    assert one.keys() == two.keys()
    for path in one:
        # Adam divides a gradient by its own size: where it is nearly zero its rounding is seen.
        np.testing.assert_allclose(
            one[path], two[path], rtol, 10 * atol, err_msg=f"{point.name}: {path}"
        )
    one, two = (json.loads((f / "adapter/adapter.json").read_text()) for f in (point, other))
    one, two = (flat(without(description, ("tensors_sha256",))) for description in (one, two))
    assert one.keys() == two.keys()
    for name in one:
        _assert_close(one[name], two[name], rtol, atol, f"{point.name}: {name}")


def _assert_close(one: Any, two: Any, rtol: float, atol: float, what: str) -> None:
    if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        for a, b in zip(one, two, strict=True):
            _assert_close(a, b, rtol, atol, what)
    elif isinstance(one, dict) and isinstance(two, dict) and one.keys() == two.keys():
        for name in one:
            _assert_close(one[name], two[name], rtol, atol, f"{what}.{name}")
    elif isinstance(one, float) and isinstance(two, float):
        np.testing.assert_allclose(one, two, rtol, atol, err_msg=what)
    else:
        assert one == two, what
