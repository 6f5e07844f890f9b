"""Finds and reads the run records (result.json) beneath folders."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_jax.run_folder import flat

# What may differ between runs of one setting.
_NO_SETTING = (
    "seeds", "mesh", "data.source", "data.row_length", "workdir", "log_every", "checkpoint_every",
    "decode.batch_size",
)  # fmt: skip
# What a sweep over weights and ranks varies.
_SWEPT = (
    "method.rank", "method.targets", "method.alpha", "method.parts", "method.fused"
)  # fmt: skip
_LETTERS = {"query": "q", "key": "k", "value": "v", "output": "o"}
_LAYER = "layers/block"
_OTHER_LAYERS = (
    f"{_LAYER}/feed_forward/up", f"{_LAYER}/feed_forward/down", "embeddings/word",
    "embeddings/token", "embeddings/position", "embeddings/token_type", "head/dense", "head/output",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Record:
    """What the report needs of a run record, or of several with the seeds pooled.

    Attributes:
      workdirs: run folders, relative to the parent of the folder given on the command line.
      task: such as sst2 or e2e.
      split: the decoded split of data-to-text; "" otherwise.
      model: label, see `model_label`.
      method: name; `none` is the model as it was.
      trained: number of values that train, the head apart.
      scores: one value per seed by metric; NaN where the seed diverged.
      seeds: in the order of the values.
      weights: adapted attention weights as letters of q, k, v, o; None if not LoRA on these alone.
      rank: of LoRA; None if it has several.
      config: of the run.
      raw: the whole of the first record.
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
        """What was scored if it is not the whole split of the paper, else ""."""
        data = self.config["data"]
        if not self.split:
            limit = data.get("max_eval_examples", 0)
            return f"{limit:,} dev examples" if limit else ""
        split = f"{self.split} split" if self.split != "test" else ""
        limit = data.get("max_prompts", 0)
        return ", ".join([split] * bool(split) + [f"{limit:,} inputs"] * bool(limit))

    @property
    def examples(self) -> int | None:
        """Training examples of an epoch; None if nothing was trained."""
        first: Mapping[str, Any] = next(iter(self.raw[0]["seeds"].values()), {})
        return round(first["examples"] / self.config["epochs"]) if "examples" in first else None

    @property
    def trained_on_part(self) -> bool:
        """Whether the training set was cut."""
        limit = self.config["data"].get("max_examples", 0)
        return self.examples is not None and 0 < limit <= self.examples

    @property
    def restricted(self) -> bool:
        """Whether it is the set-up of Table 2's † rows: length 128, no start from MNLI."""
        return self.config["data"].get("max_length") == 128 and not self.config.get("init_adapter")


@dataclasses.dataclass(frozen=True)
class Found:
    """The records beneath folders, and what is no record: workdirs of unfinished runs, and others."""

    records: tuple[Record, ...]
    unfinished: tuple[str, ...]
    others: tuple[tuple[str, str], ...]


def weights_label(weights: str) -> str:
    """`qv` -> `W_q, W_v`."""
    return ", ".join(f"W_{letter}" for letter in weights)


def model_label(name: str) -> str:
    """`package:NAME` -> NAME; of a path, its last two parts; a hub name stays."""
    return "/".join(Path(name.removeprefix("package:")).parts[-2:]).lstrip("/")


def find(folders: Sequence[str | os.PathLike]) -> Found:
    """Reads every record beneath folders, apart from those inside `seed_*`.

    Raises:
      OSError: a folder is missing.
      ValueError: there is no record, or one is broken; the message names the file.
    """
    runs = _labelled([Path(folder) for folder in folders])
    records, unfinished, others = [], [], []
    for folder, label in runs.items():
        if not (folder / "result.json").exists():
            unfinished.append(label)
            continue
        raw = _json(folder / "result.json")
        if raw.get("task") == "pretrain":
            others.append((label, "a pre-training run, no adaptation"))
        else:
            records.append(_record(raw, label, folder / "result.json"))
    if not records:
        started = f"; not finished: {', '.join(unfinished)}" if unfinished else ""
        raise ValueError(
            f"no run record (result.json) beneath {', '.join(map(str, folders))}{started}. Give the "
            "--workdir of a finished run of experiments.glue or experiments.nlg, or a folder of such"
        )
    return Found(tuple(records), tuple(unfinished), tuple(others))


def _labelled(given: Sequence[Path]) -> dict[Path, str]:
    """Every run's folder with its label; labels are different."""
    result: dict[Path, str] = {}
    for root in given:
        if not root.is_dir():
            raise FileNotFoundError(f"{root} is no folder; give folders of runs")
        for folder in _runs(root.resolve()):
            result.setdefault(folder, str(folder.relative_to(root.resolve().parent)))
    if len(set(result.values())) < len(result):  # such as a/run and b/run
        common = os.path.commonpath([root.resolve().parent for root in given])
        result = {folder: str(folder.relative_to(common)) for folder in result}
    return result


def _runs(root: Path) -> Iterable[Path]:
    for path, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith(("seed_", ".")))
        if "result.json" in files or ("config.json" in files and _is_run_config(Path(path))):
            yield Path(path)


def _is_run_config(folder: Path) -> bool:
    """Whether config.json is a run's and not a model's."""
    config = _json(folder / "config.json")
    return "method" in config and "seeds" in config


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); remove it or run again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is no run record: it holds no JSON object")
    return value


def _record(raw: dict[str, Any], label: str, path: Path) -> Record:
    try:
        seeds, config, parameters = raw["seeds"], raw["config"], raw["parameters"]
        method, split = raw["method"], raw.get("split", "")
        given = {**raw["test"], "loss": raw.get("best", {}).get("loss")} if split else raw["best"]
        trained = parameters["trainable"] - parameters.get("head", 0)
        weights, rank = _lora(config["method"], bool(split))
        config["data"]  # every config has it
        return Record(
            (label,), raw["task"], split, model_label(raw["model"]), method,
            0 if method == "none" else trained,
            {name: _values(spread) for name, spread in given.items() if spread},
            tuple(seeds), *((weights, rank) if method == "lora" else (None, None)), config, (raw,),
        )  # fmt: skip
    except KeyError as error:
        raise ValueError(
            f"{path} is no run record of experiments.glue or experiments.nlg: no field {error}"
        ) from None
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{path} is a broken run record ({error})") from None


def _values(spread: Mapping[str, Any]) -> tuple[float, ...]:
    return tuple(math.nan if value is None else float(value) for value in spread["values"])


def _lora(method: Mapping[str, Any], decoder: bool) -> tuple[str | None, int | None]:
    """The adapted weights as letters, if only attention's are, and the rank, if there is one."""
    targets = method.get("targets")
    if method.get("name") != "lora" or not targets:
        return None, None
    if isinstance(targets, str):
        targets = [targets]
    own = dict(targets) if isinstance(targets, Mapping) else {t: {} for t in targets}
    letters, known, ranks = set(), method.get("bias", "none") == "none", set()
    for pattern, arguments in own.items():
        arguments = {**method, **arguments}
        ranks.add(arguments.get("rank", 8))

        def matches(path: str, pattern: str = pattern) -> bool:
            # In the encoders the layers are beneath `encoder`.
            return bool(re.fullmatch(pattern, path if decoder else f"encoder/{path}"))

        known &= not any(map(matches, _OTHER_LAYERS))
        names = ("output",) if decoder else tuple(_LETTERS)
        letters |= {_LETTERS[n] for n in names if matches(f"{_LAYER}/attention/{n}")}
        if decoder and matches(f"{_LAYER}/attention/qkv"):
            parts = set(arguments.get("parts") or ())
            known &= bool(parts) and parts <= set("qkv")  # one pair for all three is another thing
            letters |= parts
    rank = ranks.pop() if len(ranks) == 1 else None
    weights = "".join(letter for letter in "qkvo" if letter in letters)
    return (weights if known and weights and rank else None), rank


def setting(record: Record, without: Sequence[str] = ()) -> str:
    """The config as text, without seeds, paths, log, fields (and what is beneath) given, and None."""
    left_out = (*_NO_SETTING, *without)
    kept = {
        key: value
        for key, value in flat(record.config).items()
        if value is not None
        and not any(key == name or key.startswith(f"{name}.") for name in left_out)
    }
    return json.dumps(kept, sort_keys=True)


def swept_setting(record: Record) -> tuple[str, str, str]:
    """Equal for the runs of one sweep over weights and ranks."""
    return record.task, record.model, setting(record, _SWEPT)


def distinctions(records: Sequence[Record]) -> list[str]:
    """What sets each record apart from the others, in few fields; "" for a single one.

    The set-up lists have all fields; here the first ones that tell the records apart are enough.
    """
    configs = [json.loads(setting(record, _SWEPT)) for record in records]
    names = sorted({key for config in configs for key in config})
    first = [name for name in ("data.max_examples", "epochs", "learning_rate") if name in names]
    chosen: list[str] = []

    def texts() -> list[str]:
        return [", ".join(f"{n}={_short(c[n])}" for n in chosen if n in c) for c in configs]

    for name in dict.fromkeys([*first, *names]):
        before = len(set(texts()))
        chosen.append(name)
        if len(set(texts())) == before:
            chosen.pop()
    return texts()


def _short(value: Any) -> str:
    return model_label(value) if isinstance(value, str) and "/" in value else str(value)


def pooled(records: Iterable[Record]) -> list[Record]:
    """Joins records of one setting whose seeds are different."""
    result: list[Record] = []
    for new in records:
        for i, old in enumerate(result):
            if setting(old) == setting(new) and not set(old.seeds) & set(new.seeds):
                common = [name for name in old.scores if name in new.scores]
                result[i] = dataclasses.replace(
                    old, workdirs=old.workdirs + new.workdirs, seeds=old.seeds + new.seeds,
                    scores={name: old.scores[name] + new.scores[name] for name in common},
                    raw=old.raw + new.raw,
                )  # fmt: skip
                break
        else:
            result.append(new)
    return result
