"""Finds run records (result.json) in folders and reads them."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.report import adapted_layers, checked, few_shot, older_records, sent
from experiments.report.few_shot import Prompted
from experiments.report.record import Record, model_label
from lora_jax import reading
from lora_jax.errors import InputError, MissingFileError, SettingError
from lora_jax.files import to_json
from lora_jax.reading import read_object
from lora_jax.run_folder import RESULT, SETTINGS

_NONE: Mapping[Path, str] = {}
# What experiments.reproduce sends besides runs, by a key of its record.
_NO_RUNS = {
    "contenders": "a measurement of experiments.latency, whose page has its tables (latency.md)",
    "tables": "an analysis of experiments.subspace, whose page has its tables (analysis.md)",
}


@dataclasses.dataclass(frozen=True)
class RunRecords:
    """What a set of folders holds.

    Attributes:
      records: one per finished run.
      unfinished: folders of runs without a result.json.
      others: folders that no table is about, each with the reason.
      prompted: finished runs of experiments.prompting.
    """

    records: tuple[Record, ...]
    unfinished: tuple[str, ...]
    others: tuple[tuple[str, str], ...]
    prompted: tuple[Prompted, ...] = ()


def find(
    folders: Sequence[str | os.PathLike[str]], left_out: Mapping[Path, str] = _NONE
) -> RunRecords:
    """Reads every record below the folders, except those inside `seed_*`, and those of files.

    Args:
      folders: of runs, or with runs inside; or reproduced.json of experiments.reproduce, see `sent`.
      left_out: folders of runs that no table shall show, each with the reason.

    Raises:
      OSError: a folder is missing.
      ValueError: there is no record, or one is broken; the message names the file.
    """
    paths = [Path(folder) for folder in folders]
    files = [path for path in paths if path.suffix == ".json" and not path.is_dir()]
    found, reasons = _Found(), {path.resolve(): reason for path, reason in left_out.items()}
    for folder, label in _labelled([path for path in paths if path not in files]).items():
        path = folder / RESULT
        if folder in reasons:
            found.others.append((label, reasons[folder]))
        elif path.exists():
            found.take(checked.read(path), label)
        else:
            found.unfinished.append(label)
    for path in files:
        for label, record in sent.records(path):
            found.take(record, f"{Path(*path.parts[-2:])}: {label}")
    if not found.records and not found.prompted:
        started = f"; not finished: {', '.join(found.unfinished)}" if found.unfinished else ""
        started += "".join(f"; {label} is {what}" for label, what in found.others)
        raise InputError(
            f"no run record (result.json) in {', '.join(map(str, folders))}{started}. Give the "
            "--workdir of a finished run of experiments.glue or experiments.nlg, a folder that "
            "holds such runs, or the file reproduced.json of experiments.reproduce"
        )
    return RunRecords(
        tuple(found.records), tuple(found.unfinished), tuple(found.others), tuple(found.prompted)
    )


@dataclasses.dataclass
class _Found:
    """`RunRecords` while they are gathered; `known` has the labels by content."""

    records: list[Record] = dataclasses.field(default_factory=list)
    unfinished: list[str] = dataclasses.field(default_factory=list)
    others: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    prompted: list[Prompted] = dataclasses.field(default_factory=list)
    known: dict[str, str] = dataclasses.field(default_factory=dict)

    def take(self, record: reading.Record, label: str) -> None:
        """Puts a record among those that are shown, or among the others with the reason."""
        content = to_json(record.values, indent=None)
        is_copy, first = content in self.known, self.known.setdefault(content, label)
        no_run = next((why for key, why in _NO_RUNS.items() if key in record.values), "")
        if no_run:
            self.others.append((label, no_run))
        elif record.values.get("task") == "pretrain":
            self.others.append((label, "a pre-training run, no adaptation"))
        elif record.values.get("task") == "tune":
            self.others.append(
                (label, "a run of experiments.tune on texts that are not the paper's")
            )
        elif is_copy:
            self.others.append((label, f"a copy of the run `{first}`, which is shown"))
        elif few_shot.KEY in record.values:
            self.prompted.append(few_shot.read(record, label))
        else:
            self.records.append(_record(record, label))


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
        if RESULT in files or (SETTINGS in files and _is_run_config(Path(path))):
            yield Path(path)


def _is_run_config(folder: Path) -> bool:
    """Whether config.json belongs to a run that trains or prompts, and not to a model or an evaluation."""
    config = read_object(folder / SETTINGS).values
    trains = "method" in config and not config.get("eval_only")
    return "seeds" in config and (trains or "shots" in config)


def _record(record: reading.Record, label: str) -> Record:
    checked.check(record)
    raw = record.values
    method, split, parameters = raw["method"], raw.get("split", ""), raw["parameters"]
    trained = parameters["trainable"] - parameters.get("head", 0)
    validation = {"loss": raw.get("best", {}).get("loss")}
    scores = {**raw["test"], **validation} if split else raw["best"]
    try:
        weights, rank = _weights_and_rank(raw) if method in ("lora", "dora") else (None, None)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SettingError(record.path, "config.method", error) from error
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
        config=raw["config"],
        raw=(raw,),
    )


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
