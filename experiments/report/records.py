"""Finds run records (result.json) in folders and reads them."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.report import adapted_layers, older_records
from experiments.report.record import Record, model_label
from lora_jax.errors import InputError, MissingFileError


@dataclasses.dataclass(frozen=True)
class RunRecords:
    """What a set of folders holds.

    Attributes:
      records: one per finished run.
      unfinished: folders of runs without a result.json.
      others: folders that no table is about, each with the reason.
    """

    records: tuple[Record, ...]
    unfinished: tuple[str, ...]
    others: tuple[tuple[str, str], ...]


def find(folders: Sequence[str | os.PathLike[str]]) -> RunRecords:
    """Reads every record below the folders, except those inside `seed_*`.

    Raises:
      OSError: a folder is missing.
      ValueError: there is no record, or one is broken; the message names the file.
    """
    runs = _labelled([Path(folder) for folder in folders])
    records: list[Record] = []
    unfinished: list[str] = []
    others: list[tuple[str, str]] = []
    for folder, label in runs.items():
        path = folder / "result.json"
        if not path.exists():
            unfinished.append(label)
            continue
        raw = _json(path)
        if raw.get("task") == "pretrain":
            others.append((label, "a pre-training run, no adaptation"))
        elif raw.get("task") == "tune":
            others.append((label, "a run of experiments.tune on texts that are not the paper's"))
        else:
            records.append(_record(raw, label, path))
    if not records:
        started = f"; not finished: {', '.join(unfinished)}" if unfinished else ""
        raise InputError(
            f"no run record (result.json) in {', '.join(map(str, folders))}{started}. Give the "
            "--workdir of a finished run of experiments.glue or experiments.nlg, or a folder that "
            "holds such runs"
        )
    return RunRecords(tuple(records), tuple(unfinished), tuple(others))


def _labelled(roots: Sequence[Path]) -> dict[Path, str]:
    """The folder of every run, each with a label of its own."""
    labels: dict[Path, str] = {}
    for root in roots:
        if not root.is_dir():
            raise MissingFileError(f"{root} is not a folder; name folders of runs")
        for folder in _runs(root.resolve()):
            labels.setdefault(folder, str(folder.relative_to(root.resolve().parent)))
    if len(set(labels.values())) < len(labels):  # such as a/run and b/run
        common = os.path.commonpath([root.resolve().parent for root in roots])
        labels = {folder: str(folder.relative_to(common)) for folder in labels}
    return labels


def _runs(root: Path) -> Iterable[Path]:
    for path, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith(("seed_", ".")))
        if "result.json" in files or ("config.json" in files and _is_run_config(Path(path))):
            yield Path(path)


def _is_run_config(folder: Path) -> bool:
    """Whether config.json belongs to a run and not to a model."""
    config = _json(folder / "config.json")
    return "method" in config and "seeds" in config


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}); remove it or run again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a run record: it holds no JSON object")
    return value


def _record(raw: dict[str, Any], label: str, path: Path) -> Record:
    try:
        config, parameters = raw["config"], raw["parameters"]
        config["data"]  # every config has it
        method, split = raw["method"], raw.get("split", "")
        trained = parameters["trainable"] - parameters.get("head", 0)
        validation = {"loss": raw.get("best", {}).get("loss")}
        scores = {**raw["test"], **validation} if split else raw["best"]
        weights, rank = _weights_and_rank(raw) if method in ("lora", "dora") else (None, None)
        return Record(
            workdirs=(label,),
            task=raw["task"],
            split=split,
            model=model_label(raw["model"]),
            method=method,
            trained=0 if method == "none" else trained,
            scores={name: _values(spread) for name, spread in scores.items() if spread},
            seeds=tuple(raw["seeds"]),
            weights=weights,
            rank=rank,
            config=config,
            raw=(raw,),
        )
    except KeyError as error:
        raise InputError(
            f"{path} is not a run record of experiments.glue or experiments.nlg: it has no field "
            f"{error}"
        ) from None
    except (TypeError, AttributeError) as error:
        raise InputError(f"{path} is a broken run record ({error})") from None


def _values(spread: Mapping[str, Any]) -> tuple[float, ...]:
    return tuple(math.nan if value is None else float(value) for value in spread["values"])


def _weights_and_rank(raw: Mapping[str, Any]) -> tuple[str | None, int | None]:
    """`Record.weights` and `Record.rank` of a LoRA run."""
    method = raw["config"]["method"]
    if "layers" in raw:
        layers = [adapted_layers.AdaptedLayer.from_json(layer) for layer in raw["layers"]]
    else:
        layers = older_records.layers_of_config(method, is_decoder=bool(raw.get("split")))
    weights = adapted_layers.attention_weights(layers)
    if method.get("bias", "none") != "none":  # biases train too
        weights = None
    return weights, adapted_layers.common_rank(layers)
